"""What a provider is: requests in, responses out, as data.

A provider knows one service's protocol and nothing of JAX, lanes or journals. It never retries, paces or caches. The
runtime does these, in the same way for all providers.
"""

import abc
import dataclasses
import enum
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from .._text.turns import Part
from ..errors import ModelError, ProviderError
from .quota import Quota

# The role of a text whose vector is asked for. No turn of a conversation has it.
EMBED = "embed"
# The roles of a query that documents are to be scored for, and of each document.
RANK, DOCUMENT = "rank", "document"
# The role of a question about what is said before it, which is to be decided without words, see `decisions.py`.
DECIDE = "decide"

# Before the parts of a message where it is kept as words.
_PARTS = "\x1eparts\x1e"


class Message(NamedTuple):
    """One turn of a conversation.

    **Fields:**

    - `role`: `system`, `user` or `assistant`, or `tool` for the results of tools.
    - `content`: the words.
    - `parts`: what is said, part by part, where it is more than one text. `content` is then all of its texts.
    """

    role: str
    content: str
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, role: str, parts: Sequence[Part]) -> "Message":
        """A message of some parts."""
        if len(parts) == 1 and parts[0].kind == "text":
            return cls(role, parts[0].value)
        texts = [part.value for part in parts if part.kind in ("text", "tool_result")]
        return cls(role, "\n".join(texts), tuple(parts))

    @classmethod
    def kept(cls, role: str, words: str) -> "Message":
        """The message that is kept as `words`."""
        if not words.startswith(_PARTS):
            return cls(role, words)
        return cls.of(role, [Part(*part) for part in json.loads(words.removeprefix(_PARTS))])

    @property
    def words(self) -> str:
        """The message, without its role, as it is kept."""
        return f"{_PARTS}{_canonical(self.parts)}" if self.parts else self.content

    def with_words(self, more: str) -> "Message":
        """The message with more words at its end, after an empty line."""
        parts = (*self.parts, Part("text", more)) if self.parts else ()
        return Message(self.role, f"{self.content}\n\n{more}", parts)

    def shown(self) -> str:
        """The message as it is printed."""
        return "\n".join(map(_shown, self.parts)) if self.parts else self.content


def audio_format(kind: str) -> str:
    """The format of audio as services name it, by the beginning of its `data:` URL."""
    name = kind.removeprefix("data:audio/").partition(";")[0].lower()
    return {"mpeg": "mp3", "x-wav": "wav", "wave": "wav"}.get(name, name)


def _shown(part: Part) -> str:
    match part.kind:
        case "text":
            return part.value
        case "thought":
            return "[thinks]"
        case "tool_call":
            return f"[calls {part.name}({part.value})]"
        case "tool_result":
            return f"[{part.name} gave: {part.value}]"
        case _:
            held = part.value.partition(",")[0] if part.value.startswith("data:") else part.value
            return f"[{part.kind} {part.name or held}, {len(part.value):,} characters]"


# Makes another form of a question from the request of its first one.
Form: TypeAlias = "Callable[[Request], Request]"


def is_drawn(parameters: Mapping[str, Any]) -> bool:
    """Whether two answers may differ: at temperature 0 there is nothing to draw, and a key means nothing."""
    return parameters.get("temperature") != 0


@dataclass(frozen=True)
class Request:
    """One call, with all that its answer depends on: equal requests to one endpoint share one answer.

    **Fields:**

    - `provider`, `model`: the two halves of the model id `provider/model`.
    - `messages`: the conversation; or texts, each a message of the role `EMBED`, whose vectors are asked for. The
        answer's text is then the vectors of all in their order, see `vectors.py`. Or a query, of the role `RANK`, and
        documents, of the role `DOCUMENT`, whose scores are asked for. The answer's text is then one vector of those.
        Or a conversation and, at its end, questions about it, each a message of the role `DECIDE`. The answer's text is
        then the probabilities of the one question's options, or `Response.answers` are those of several, see
        `decisions.py`.
    - `parameters`: JSON values by name, as the user set them (`temperature`, `max_tokens`, …).
    - `sample`: the bits of the caller's key in hex, or `None` without a key. It tells several samples of one prompt
        apart. Services are not sent it, but for what `seed` says; a simulated model draws from it.
    - `forms`: other forms of the same question, in the order in which they are asked where a service refuses the one
        before. Questions with equal forms are of one kind, of which a service is expected to refuse all or none. The
        digest is that of the first form, this request, whichever is answered.
    - `answers`: how many samples are asked for at once. More than one only where a provider's `most_samples` allows it;
        such a request stands for the samples of several calls, each of which is kept by its own.
    - `shared`: with how much of it other calls begin too: so many messages, and so many characters of the next one.
        What `marks_prefix` is of tells its service to keep it for them. It is no part of the digest.
    """

    provider: str
    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sample: str | None = None
    forms: tuple[Form, ...] = field(default=(), repr=False)
    answers: int = 1
    shared: tuple[int, int] = (0, 0)

    @property
    def embeds(self) -> bool:
        """Whether vectors of texts are asked for, and no words."""
        return bool(self.messages) and self.messages[0].role == EMBED

    @property
    def ranks(self) -> bool:
        """Whether scores of documents are asked for, and no words."""
        return bool(self.messages) and self.messages[0].role == RANK

    @property
    def decides(self) -> bool:
        """Whether probabilities of given options are asked for, and no words."""
        return bool(self.messages) and self.messages[-1].role == DECIDE

    @property
    def decides_several(self) -> bool:
        """Whether several questions are to be decided."""
        return self.decides and sum(message.role == DECIDE for message in self.messages) > 1

    @property
    def asks_words(self) -> bool:
        """Whether words are asked for, and no numbers."""
        return not (self.embeds or self.ranks or self.decides)

    def in_form(self, number: int) -> "Request":
        """The question in one of its forms; 0 is the first, this request."""
        return self.forms[number - 1](self) if number else self

    def seed(self, most: int = 2**31 - 1) -> int | None:
        """The seed to send, at most so large, where the parameters have one: each sample has its own, made of both.

        Samples with one and the same seed would be one sample, paid for many times. `None` without a whole number.
        """
        seed = self.parameters.get("seed")
        if self.sample is None or not isinstance(seed, int):
            return seed if isinstance(seed, int) else None
        made = hashlib.blake2b(f"{seed} {self.sample}".encode(), digest_size=8).digest()
        return int.from_bytes(made, "little") % (most + 1)

    def without(self, *names: str) -> "Request":
        """The same request without some parameters, and without other forms."""
        parameters = {k: v for k, v in self.parameters.items() if k not in names}
        return dataclasses.replace(self, parameters=parameters, forms=())

    def digest(self, endpoint: str = "") -> bytes:
        """32 bytes that are equal exactly for equal requests to one endpoint, on every machine."""
        return digest(self.provider, self.model, self.messages, self.parameters, self.sample, endpoint)


def digest(
    provider: str,
    model: str,
    messages: tuple[Message, ...],
    parameters: Mapping[str, Any],
    sample: str | None,
    endpoint: str = "",
) -> bytes:
    """That of the request which these are the fields of."""
    # The hash of a JSON list, in canonical form, of all that is asked. The list is put together by hand, because every
    # call needs a digest, nearly all values are strings, and `json.dumps` takes five times as long.
    said = _canonical_messages(messages)
    how = _canonical(dict(parameters)) if parameters else "{}"
    which = "null" if sample is None else _quoted(sample)
    where = f",{_quoted(endpoint)}" if endpoint else ""
    canonical = f"[{_quoted(provider)},{_quoted(model)},[{said}],{how},{which}{where}]"
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=32).digest()


@functools.lru_cache(maxsize=16)  # mostly the samples of one prompt are asked for one after another
def _canonical_messages(messages: tuple[Message, ...]) -> str:
    return ",".join([f"[{_quoted(m.role)},{_quoted(m.content)}{_more(m)}]" for m in messages])


def _more(message: Message) -> str:
    return f",{_canonical(message.parts)}" if message.parts else ""


_quoted = json.encoder.encode_basestring_ascii
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


class Finish(enum.IntEnum):
    """How an answer ended. As numbers they are the values of `Completion.finish`, and comparable with it.

    - `OTHER`: in another way, or the service did not say.
    - `STOP`: the model had said all.
    - `LENGTH`: at the most tokens that it was allowed.
    - `TOOL_CALLS`: with a wish to call tools.
    - `CONTENT_FILTER`: the service stopped it.
    - `REFUSAL`: the model declined.
    - `ERROR`: the service failed while it answered.
    """

    OTHER = 0
    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4
    REFUSAL = 5
    ERROR = 6


class Tokens(NamedTuple):
    """What is billed of one request, in tokens; they may be infinite where only a bound is asked for.

    **Fields:**

    - `input`, `output`: of the prompt, and of the answer with all reasoning.
    - `cached`, `cache_write`: those of the input that came out of a cache, and that were written into one.
    - `reasoning`: those of the output that are no part of the answer's text.
    - `cache_write_1h`: those of `cache_write` that are kept for an hour, where a service has a price of its own for it.
    """

    input: float = 0
    output: float = 0
    cached: float = 0
    cache_write: float = 0
    reasoning: float = 0
    cache_write_1h: float = 0


class Response(NamedTuple):
    """One answer.

    **Fields:**

    - `text`: the words; of an answer that is a refusal, those it was declined with.
    - `input_tokens`, `output_tokens`: as the provider counted them; 0 where it does not say.
    - `cost`: US dollars, NaN where no price is known.
    - `logprob`: the sum of the answer's token log-probabilities, NaN where the provider does not say.
    - `model`: the model that answered, as the provider names it.
    - `request_id`: the provider's own id of the request, empty where it gives none.
    - `alternatives`: the candidates for the answer's first token with their log-probabilities, as the provider lists
        them; empty where it does not say.
    - `finish`: how it ended. By default all is said.
    - `reasoning`: the words that the model thought in, where the service shows them; they are no part of `text`.
    - `cached_tokens`, `cache_write_tokens`: those of the input that came out of a cache, and that were written into
        one.
    - `reasoning_tokens`: those of the output that are no part of `text`.
    - `service_tier`, `fingerprint`: what the service says of how it answered.
    - `tool_calls`: what the model wants called, parts of the kind `tool_call`; before them parts of the kind `thought`,
        which are to be given back with them as they came. Only requests with the parameter `tools` have such answers.
    - `fault`: why the answer is of no use to the call that asked for it; empty if it is. Providers leave it empty.
    - `quota`: what the provider said of its limits; no part of what is kept.
    - `answers`: of a request for several answers, or of several questions, each of them without tokens and cost, or the
        error that came in its place; of answers there may be fewer than were asked for. All else is then about the
        request. No part of what is kept.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = float("nan")
    logprob: float = float("nan")
    model: str = ""
    request_id: str = ""
    alternatives: tuple[tuple[str, float], ...] = ()
    finish: int = Finish.STOP
    reasoning: str = ""
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    service_tier: str = ""
    fingerprint: str = ""
    tool_calls: tuple[Part, ...] = ()
    fault: str = ""
    quota: Quota | None = None
    answers: "tuple[Response | ProviderError, ...]" = ()

    @property
    def tokens(self) -> Tokens:
        """What is billed of it."""
        return Tokens(
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.cache_write_tokens,
            self.reasoning_tokens,
        )

    @property
    def is_cut(self) -> bool:
        """Whether it ended before all was said, by a limit or a filter."""
        return self.finish in (Finish.LENGTH, Finish.CONTENT_FILTER)

    @property
    def is_answer(self) -> bool:
        """Whether it has something to go on with. An empty text is an answer only of a model that has said all."""
        if self.finish == Finish.STOP:
            return True
        return self.finish != Finish.REFUSAL and (bool(self.tool_calls) or bool(self.text and not self.text.isspace()))


class BatchLimits(NamedTuple):
    """How much may be in one request for vectors.

    **Fields:**

    - `texts`: the most texts. OpenAI takes 2,048; but services behind gateways take 96 (Cohere) or 100 (Vertex), and a
        few requests at once are answered sooner than one that is as long.
    - `tokens`: the most tokens of all texts together. 300,000 are OpenAI's limit.
    - `each`: the most tokens of one text.
    """

    texts: int = 96
    tokens: float = 300_000
    each: float = math.inf


class Decisions(NamedTuple):
    """What a service takes of questions that it decides without words, see `DECIDE`.

    **Fields:**

    - `questions`: how many questions about one conversation a request may have.
    - `options`: the most options of a choice.
    - `levels`: the most levels of a score.
    """

    questions: int
    options: int
    levels: int


class Provider(abc.ABC):
    """One service that answers requests.

    An instance may be used from one event loop at a time; `complete` is called concurrently on it.

    **Attributes:**

    - `is_local`: whether answers come from this process. If so, its calls are paced only where the user gives a limit.
        If not, they are paced as well by what the service says of its limits, or is found to allow.
    """

    is_local: ClassVar[bool] = False

    @property
    def price_table(self) -> str:
        """The name and the version of the table that its `cost` is by; empty if there is none."""
        return ""

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

    def cost(self, request: Request, tokens: Tokens) -> float:
        """The US dollars of an answer to `request` that takes so many tokens, NaN where its price is not known."""
        return math.nan

    def most_cost(self, request: Request, tokens: Tokens) -> float:
        """The US dollars that a call comes to at most, if it is billed no more tokens than these; NaN without a price.

        It is asked before the call is sent, when neither the hour nor the service's tier is known. By default it is
        the `cost`.
        """
        return self.cost(request, tokens)

    def most_output(self, request: Request) -> float:
        """The most tokens that an answer can have if `request` sets no limit; infinite if that is not known."""
        return math.inf

    def most_samples(self, request: Request) -> int:
        """How many samples of a question it may be asked for by one request, see `Request.answers`; 1 by default.

        It may say so of a model that turns out not to take it: one that refuses, or that gives fewer, is asked for the
        rest one by one.
        """
        return 1

    def batch_limits(self, request: Request) -> BatchLimits:
        """How much may be in one request for vectors to the model of `request`."""
        return BatchLimits()

    def least_prefix(self, request: Request) -> float:
        """How many tokens the beginning of a prompt has at least that its service keeps for later calls.

        Infinite, as by default, if it keeps none, so that no call is to wait for another one that begins alike.
        """
        return math.inf

    def marks_prefix(self, request: Request) -> bool:
        """Whether its service keeps only what it is told to, as `Request.shared` says; by default it is not told."""
        return False

    def decisions(self, request: Request) -> Decisions | None:
        """What it takes of questions like the request's, which has the role `DECIDE`; `None`, if it decides none.

        It may say so of a model that turns out to decide nothing: one that refuses is asked by letters.
        """
        return None

    async def models(self) -> tuple[str, ...]:
        """The names of its models. Raises `ModelError` if it has no list of them, or a `ProviderError`."""
        raise ModelError(f"{self!r} has no list of its models.")

    @abc.abstractmethod
    async def complete(self, request: Request) -> Response:
        """Sends the request once and returns its answer, or raises a `ProviderError`."""

    async def stream(self, request: Request, told: Callable[[str], object]) -> Response:
        """Likewise, and tells the words of the answer as they come, on the event loop.

        By default it tells none: whoever asks has them when the answer is there.
        """
        return await self.complete(request)

    @abc.abstractmethod
    async def close(self) -> None:
        """Frees connections. The provider may be used again afterwards."""
