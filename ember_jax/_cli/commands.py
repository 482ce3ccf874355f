"""The command line: `python -m ember_jax`, or `ember_jax`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from .. import __version__
from ..errors import JournalError
from . import doctor, journal
from .demo import demo


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(prog="ember_jax", description="Networks of LLM calls as JAX programs.")
    parser.add_argument("--version", action="version", version=f"ember_jax {__version__} with JAX {jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("demo", help="answer questions with a network of simulated models; no key, no network")
    shown.add_argument("--questions", type=_positive, default=300, help="how many (300)")
    shown.add_argument("--seed", type=int, default=0, help="draws the questions and the samples (0)")
    shown.add_argument(
        "--out", type=Path, default=Path("ember-demo"), metavar="FOLDER", help="where pictures are written (ember-demo)"
    )
    shown.set_defaults(run=lambda given: demo(given.questions, given.seed, folder=given.out))
    journal.add(commands)
    doctor.add(commands)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (JournalError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _positive(words: str) -> int:
    number = int(words)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number
