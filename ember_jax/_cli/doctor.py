"""What is there: `python -m ember_jax doctor`. No key is shown, only the variable that holds one."""

import asyncio
import importlib.metadata
import os
import platform
from typing import Any

import jax

from .. import __version__
from ..errors import ConnectionFailedError, EmberError, told
from ..providers import _built_in_names
from ..providers.http import Vendor
from ..providers.registry import get

# Distributions, those that are needed first.
_NEEDED = ("equinox", "jaxtyping", "numpy", "msgspec", "aiohttp", "genai-prices")
_OPTIONAL = ("optax", "tiktoken", "pydantic", "httpx", "httpx2", "mcp", "matplotlib", "pandas", "pyarrow")
_OPTIONAL += ("botocore", "google-auth")
# How long a service may take to list its models, in seconds.
_PATIENCE = 20.0


def add(commands: Any) -> None:
    """Adds the command `doctor` to the commands of a parser, which are what `add_subparsers` gave."""
    parser = commands.add_parser("doctor", help="say which keys, endpoints and packages are there")
    parser.add_argument("--ask", action="store_true", help="ask each service that has its key for its models")
    parser.set_defaults(run=lambda given: doctor(ask=given.ask))


def doctor(*, ask: bool) -> None:
    """Prints what is there."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    print(f"ember_jax {__version__}, JAX {jax.__version__}, Python {python}")
    print(f"packages   {', '.join(f'{name} {_version(name)}' for name in _NEEDED)}")
    there = [f"{name} {_version(name)}" for name in _OPTIONAL if _version(name)]
    missing = [name for name in _OPTIONAL if not _version(name)]
    print(f"optional   {', '.join(there) or 'none'}; not installed: {', '.join(missing) or 'none'}")
    found = [(name, provider) for name in sorted(_built_in_names()) if isinstance(provider := get(name), Vendor)]
    answers = asyncio.run(_asked([vendor for _, vendor in found if _may_be_asked(vendor)])) if ask else {}
    print()
    for name, vendor in found:
        answer = f"  {answers[id(vendor)]}" if id(vendor) in answers else ""
        print(f"{name:<11} {_key(vendor):<28} {_endpoint(vendor)}{answer}")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _variable(vendor: Vendor) -> str:
    """The variable that holds the key; empty if none does, or if credentials count and no key."""
    if vendor.cloud is not None and not vendor.cloud.takes_key():
        return ""
    return next((name for name in vendor.service.key_variables if os.environ.get(name, "").strip()), "")


def _key(vendor: Vendor) -> str:
    if variable := _variable(vendor):
        return variable
    if vendor.cloud is not None:
        return vendor.cloud.found()
    return f"no {vendor.service.key_variables[0]}" if vendor.service.needs_key else "needs no key"


def _endpoint(vendor: Vendor) -> str:
    try:
        return vendor.endpoint
    except EmberError as error:
        if vendor.cloud is not None:
            return str(error).partition(", or give")[0]
        return f"set {vendor.service.base_variables[0]} to a whole URL"


def _may_be_asked(vendor: Vendor) -> bool:
    if vendor.cloud is not None and not _variable(vendor):
        return vendor.cloud.fetch() is None
    return bool(_variable(vendor)) or not vendor.service.needs_key


async def _asked(vendors: list[Vendor]) -> dict[int, str]:
    """What each says when it is asked for its models."""
    said = await asyncio.gather(*map(_listed, vendors))
    return {id(vendor): words for vendor, words in zip(vendors, said, strict=True)}


async def _listed(vendor: Vendor) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            return f"answers: {len(await vendor.models()):,} models"
    except TimeoutError:
        return f"no answer within {_PATIENCE:g} s"
    except ConnectionFailedError:
        return "does not answer"
    except EmberError as error:
        return told(error)
    finally:
        await vendor.close()
