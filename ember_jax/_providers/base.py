"""What a provider is: requests in, responses out, as data.

A provider knows one service's protocol and nothing of JAX, lanes or journals. It never retries, paces or caches. The
runtime does these, in the same way for all providers.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from .quota import Quota


class Message(NamedTuple):
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Request:
    """One call, with all that its answer depends on: equal requests to one endpoint share one answer.

    **Fields:**

    - `provider`, `model`: the two halves of the model id `provider/model`.
    - `messages`: the conversation.
    - `parameters`: JSON values by name, as the user set them (`temperature`, `max_tokens`, …).
    - `sample`: the bits of the caller's key in hex, or `None` without a key. It tells several samples of one prompt
        apart. No provider sends it, but a simulated one draws from it.
    - `optional`: the names of those `parameters` that the call can do without where a service refuses them. The digest
        contains these parameters, but not that they are optional.
    """

    provider: str
    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sample: str | None = None
    optional: frozenset[str] = frozenset()

    def without_optional(self) -> "Request":
        """The same request without its optional parameters."""
        parameters = {k: v for k, v in self.parameters.items() if k not in self.optional}
        return dataclasses.replace(self, parameters=parameters, optional=frozenset())

    def digest(self, endpoint: str = "") -> bytes:
        """32 bytes that are equal exactly for equal requests to one endpoint, on every machine."""
        # The hash of a JSON list, in canonical form, of all that is asked. The list is put together by hand, because
        # every call needs a digest, nearly all values are strings, and `json.dumps` takes five times as long.
        messages = _canonical_messages(self.messages)
        parameters = _canonical(dict(self.parameters)) if self.parameters else "{}"
        sample = "null" if self.sample is None else _quoted(self.sample)
        where = f",{_quoted(endpoint)}" if endpoint else ""
        canonical = f"[{_quoted(self.provider)},{_quoted(self.model)},[{messages}],{parameters},{sample}{where}]"
        return hashlib.blake2b(canonical.encode("ascii"), digest_size=32).digest()


@functools.lru_cache(maxsize=16)  # mostly the samples of one prompt are asked for one after another
def _canonical_messages(messages: tuple[Message, ...]) -> str:
    return ",".join([f"[{_quoted(role)},{_quoted(content)}]" for role, content in messages])


_quoted = json.encoder.encode_basestring_ascii
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


class Response(NamedTuple):
    """One answer.

    **Fields:**

    - `text`: the whole answer.
    - `input_tokens`, `output_tokens`: as the provider counted them; 0 if it does not say.
    - `cost`: US dollars; NaN if no price is known.
    - `logprob`: the sum of the answer's token log-probabilities, NaN where the provider does not say.
    - `model`: the model that answered, as the provider names it.
    - `request_id`: the provider's own id of the request, empty where it gives none.
    - `alternatives`: the candidates for the answer's first token with their log-probabilities, as the provider lists
        them; empty where it does not say.
    - `quota`: what the provider said of its limits at that moment, or `None`. The runtime takes it out of the response
        before it keeps the response.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = float("nan")
    logprob: float = float("nan")
    model: str = ""
    request_id: str = ""
    alternatives: tuple[tuple[str, float], ...] = ()
    quota: Quota | None = None


class Provider(abc.ABC):
    """One service that answers requests.

    An instance may be used from one event loop at a time; `complete` is called concurrently on it.

    **Attributes:**

    - `is_local`: whether answers come from this process. If so, its calls are paced only where the user gives a limit.
        If not, they are paced as well by what the service says of its limits, or is found to allow.
    """

    is_local: ClassVar[bool] = False

    @property
    def endpoint(self) -> str | None:
        """The address that it asks, such as a base URL. It is part of the digest that answers are kept under.

        It must not hold a credential, as journals keep it. `None` says that its answers may change without notice, as
        those of a Python function do when it is edited. Such answers are kept in a journal that a session names, but
        not in the user's own.
        """
        return ""

    @abc.abstractmethod
    def check(self, model: str) -> None:
        """Raises `ModelError` if `model` (without the provider's prefix) is known not to exist.

        Called when an `LLM` is built; it must neither do IO nor need credentials.
        """

    def cost(self, request: Request, input_tokens: float, output_tokens: float) -> float:
        """The US dollars of an answer to `request` with so many tokens; NaN if its price is not known.

        The numbers of tokens may be infinite, to ask for a bound.
        """
        return math.nan

    def most_output(self, request: Request) -> float:
        """The most tokens that an answer can have if `request` sets no limit; infinite if that is not known."""
        return math.inf

    @abc.abstractmethod
    async def complete(self, request: Request) -> Response:
        """Sends the request once and returns its answer, or raises a `ProviderError`."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Frees connections. The provider may be used again afterwards."""
