"""What a vendor's protocol is, without any IO: requests as data, and what answers say.

A *dialect* is one such protocol. `http.HTTPProvider` holds a dialect and does all the IO around it: it owns the
client, finds the key and the base URL, waits, reads the headers that ask to wait, scrubs credentials, and raises the
typed errors. So a dialect can be tested with data alone, and a vendor is one file:

1. a final `Dialect`, which builds the vendor's requests and reads its answers;
2. a `Service`: where the vendor is, and the environment variables that its users set;
3. a final `http.Vendor` with the vendor's name, whose `__init__` holds an `HTTPProvider` of the two, and whose
   docstring says what users must know.

`__init__.py` then names the vendor: for users of `ember.providers`, and as the beginning of model ids. `openai.py` is
the example to copy, and an entry in `tests/test_vendors.py` holds the vendor to the contract of all.

A dialect raises nothing. Its failures are data too, in which the service's own words stand apart from ours. A service's
words may quote the key, so all of them are scrubbed in one place, where the key is known. (If dialects raised errors,
each would have to scrub by itself, and the one that forgets to would show a key.)

The body of a request is a tree of JSON values and not bytes, as every protocol sends JSON. So one place encodes the
tree for all dialects, and refuses what is not JSON; and a batch of requests can be made of such trees. The method is
POST in all protocols, but for lists of models, which are asked for by GET.
"""

import abc
import dataclasses
import json
import math
import typing
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..errors import MalformedResponseError, ProviderError, RefusedRequestError
from .base import BatchLimits, Decisions, Request, Response, Tokens

_Shape = TypeVar("_Shape")


@dataclass(frozen=True)
class Service:
    """Where a service is, and where its users keep what it needs.

    **Fields:**

    - `maker`: the name of the class that users make its provider with; errors tell them to.
    - `base_url`: what the paths of a dialect are appended to, without a slash at its end; empty if every user has
        another one. Nobody asks this host without a key.
    - `base_variables`: environment variables that may hold another base URL; the first that is set counts.
    - `key_variables`: environment variables that may hold the key; the first that is set counts. Errors name the first.
    - `version`: what is put behind a base URL that does not end with a version of the API, such as `/v1`. Many
        vendors' own variables leave it out.
    - `needs_key`: whether its own host is never asked without a key.
    - `name`: the first argument of `maker`, where that makes the providers of several services.
    - `otherwise`: what to look at whose credentials are not accepted, if there is no key.
    """

    maker: str
    base_url: str
    base_variables: tuple[str, ...]
    key_variables: tuple[str, ...]
    version: str = ""
    needs_key: bool = True
    name: str = ""
    otherwise: str = ""

    def made(self, argument: str) -> str:
        """The code that makes its provider with one more argument."""
        return f"{self.maker}({self.name!r}, {argument})" if self.name else f"{self.maker}({argument})"

    @property
    def advice(self) -> str:
        """What to do about a key that the service does not accept."""
        checked = f" Check {self.key_variables[0]}, or the argument api_key of {self.made('api_key=…')}."
        return f"{checked} {self.otherwise}" if self.otherwise else checked


class HTTPRequest(NamedTuple):
    """What to POST: a path below the base URL, the headers besides those of the key, and a body of JSON values."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class HTTPAnswer(NamedTuple):
    """A whole answer: its status, its headers by their names in lower case, and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """Why a request cannot be sent, or what an answer says instead of a completion.

    **Fields:**

    - `kind`: the exception that it is raised as.
    - `words`: our message, with a `{}` for each item of `said`. The model id is put before it.
    - `said`: the service's own words. Each is scrubbed, put on one line and shortened before it is filled in.
    - `tokens`: what the service says that it bills although this is no answer, or `None`.
    """

    kind: type[ProviderError]
    words: str
    said: tuple[str, ...] = ()
    tokens: Tokens | None = None


def refused(name: str, why: str) -> Failure:
    """That a parameter is not sent, why, and how to leave it out."""
    return Failure(
        RefusedRequestError, f"the parameter {name!r} is refused. {why} Take it out: `llm.replace({name}=None)`."
    )


class SampledAnswers(NamedTuple):
    """What an answer to a request for several samples says: of each, and of the request as a whole."""

    whole: Response
    each: tuple[Response | Failure, ...]


class Meaning(NamedTuple):
    """What an HTTP status means.

    **Fields:**

    - `kind`: the exception that it is raised as.
    - `advice`: what is put behind the service's words.
    - `retry_after`: the seconds that the body asks to wait; `None` if only the headers may.
    """

    kind: type[ProviderError]
    advice: str = ""
    retry_after: float | None = None


@dataclass(frozen=True)
class Listing:
    """How a service lists its models: by GET, with an object that has a list of them, and in pages if they are many.

    **Fields:**

    - `path`: below the base URL, with the question of how long a page may be.
    - `headers`: those besides the key's.
    - `models`: the field with the list; some services send the list alone.
    - `id`: the field of each model with its name, and `prefix`, what stands before the name there.
    - `cursor`: the field that names the next page's begin, and the parameter that this is asked by.
    - `moved`: what stands in the service's own base URL for what stands in that of the list, if that is another.
    """

    path: str = "/models"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    models: str = "data"
    id: str = "id"
    prefix: str = ""
    cursor: tuple[str, str] | None = None
    moved: tuple[str, str] = ("", "")

    def page(self, begin: str) -> str:
        """The path of the page with that begin; of the first one, if it is empty."""
        if not begin or self.cursor is None:
            return self.path
        return f"{self.path}{'&' if '?' in self.path else '?'}{self.cursor[1]}={urllib.parse.quote(begin, safe='')}"

    def read(self, answer: HTTPAnswer) -> tuple[tuple[str, ...], str] | Failure:
        """The names on a page, and the begin of the next page; that is empty where there is none."""
        tree = tree_of(answer.body)
        fields = tree if isinstance(tree, dict) else {}
        listed = tree if isinstance(tree, list) else fields.get(self.models)
        if not isinstance(listed, list):
            return Failure(
                MalformedResponseError, "the answer is not a list of models: {}", (stated(answer.body) or "…",)
            )
        found = [model.get(self.id) for model in listed if isinstance(model, dict)]
        names = tuple(name.removeprefix(self.prefix) for name in found if isinstance(name, str))
        begin = fields.get(self.cursor[0]) if self.cursor and fields.get("has_more", True) else None
        return names, begin if isinstance(begin, str) and names else ""


class Stream(abc.ABC):
    """How a protocol's answer comes in pieces, abstract: takes the bytes of one answer, and puts it together.

    **Attributes:**

    - `asks`: the fields that a request's body asks for a stream with.
    - `ending`: what the path ends with of a request for an answer in one piece, and of one for a stream.
    - `content_type`: what the service says that a stream is.
    """

    asks: Mapping[str, Any]
    ending: ClassVar[tuple[str, str]] = ("", "")
    content_type: ClassVar[str] = "text/event-stream"

    @abc.abstractmethod
    def feed(self, raw: bytes) -> str:
        """Takes more bytes; returns the words of the answer that they complete, which may be none."""

    @abc.abstractmethod
    def whole(self) -> bytes | None:
        """The body that the answer would have in one piece; `None` if the stream ended before the answer did."""


class Dialect(abc.ABC):
    """One protocol, abstract. A dialect has no state that changes, and may serve any number of providers.

    **Attributes:**

    - `service`: the service that is asked.
    - `listing`: how the service lists its models.
    - `embeds`: whether it has requests for vectors of texts.
    - `ranks`: whether it has requests for scores of documents.
    - `quota_headers`: the families of headers, see `quota`, that may tell the service's limits. The first counts
        that says how much is left.
    """

    service: Service
    listing: ClassVar[Listing] = Listing()
    embeds: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    quota_headers: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def authorization(self, key: str) -> Mapping[str, str]:
        """The headers that a key is sent in. It is not called with an empty key."""

    @abc.abstractmethod
    def build(self, request: Request) -> HTTPRequest | Failure:
        """What to send for a request, or why it cannot be sent."""

    @abc.abstractmethod
    def read(self, answer: HTTPAnswer, request: Request) -> "Response | SampledAnswers | Failure":
        """What an answer with a status of success (2xx) says.

        A request for several answers gets a `SampledAnswers` of what each of them says.
        The `HTTPProvider` fills in the quota afterwards, and reads answers with any other status itself.
        """

    def stream(self, request: Request) -> Stream | None:
        """What puts an answer together that comes in pieces; `None` where answers are asked for as a whole."""
        return None

    @abc.abstractmethod
    def most_output(self, request: Request) -> float:
        """The most tokens that an answer can have if `request` sets no limit; infinite if that is not known."""

    def most_samples(self, request: Request) -> int:
        """How many samples one request may ask for, see `Provider.most_samples`."""
        return 1

    def batch_limits(self, request: Request) -> BatchLimits:
        """How much may be in one request for vectors; the most of one text is by the price table, whatever is here."""
        return BatchLimits()

    def least_prefix(self, request: Request) -> float:
        """The fewest tokens of a prompt's beginning that are kept, see `Provider.least_prefix`.

        By default OpenAI's, which other services have taken over. It counts where what was kept is known to be cheaper.
        """
        return 1_024

    def marks_prefix(self, request: Request) -> bool:
        """Whether only what is marked is kept, see `Provider.marks_prefix`."""
        return False

    def decisions(self, request: Request) -> Decisions | None:
        """What the service takes of questions to decide, see `Provider.decisions`."""
        return None

    @abc.abstractmethod
    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        """What an answer with a status of failure means, if its body shows that it is not what the status says.

        Else `None`, and the status counts. The message of the error is found without a dialect, see `stated`.
        """


def decoded(answer: HTTPAnswer, form: type[_Shape], noun: str, hint: str) -> _Shape | Failure:
    """The body as a value of a dataclass, or why it is none. Fields that the dataclass does not have are ignored.

    **Arguments:**

    - `answer`: whose body is read.
    - `form`: the dataclass.
    - `noun`: what the body should be, such as `"a chat completion"`.
    - `hint`: what the user should look at if the answer does not even claim to be JSON, as a web page does not.
    """
    # Imported on the first answer, so that `import ember_jax` stays cheap.
    import msgspec

    fault: ValueError | RecursionError
    try:
        return msgspec.json.decode(answer.body, type=form)
    except (ValueError, RecursionError) as error:
        fault = error
        # Answers that were paid for are read as far as they can be. Most are strict JSON, which msgspec reads in a
        # tenth of the time, so leniency is tried second. But some gateways send an error message with status 200.
        said = stated(answer.body)
        if not said and (tree := tree_of(answer.body)) is not None:
            try:
                return lenient(tree, form)
            except ValueError as error:
                fault = error
        words, said = f"the answer is not {noun}: {{}}.", said or _fault(answer.body, fault)
    content_type = answer.headers.get("content-type", "")
    if "json" in content_type:
        return Failure(MalformedResponseError, words, (said,))
    return Failure(MalformedResponseError, f"{words} It is {{!r}}; {hint}", (said, content_type))


def lenient(tree: Any, form: type[_Shape]) -> _Shape:
    """A tree of JSON as a value of a dataclass. Raises `ValueError` where it has another form.

    What services send although it is no JSON, or of another type than it should be, is read as what it means: the
    constants `NaN` and `-Infinity`, whole numbers with a point, numbers in quotes; half of a surrogate pair is U+FFFD.
    A field with a default has the default if what was sent for it cannot be read: an answer is not lost because of what
    is said about it.
    """
    import msgspec

    return msgspec.convert(_pruned(_unicode(tree), form), form, strict=False)


def _pruned(tree: Any, hint: Any) -> Any:
    """The tree without the fields of dataclasses that have a default and cannot be read."""
    form = _form_in(hint)
    if isinstance(tree, list):
        return [_pruned(inner, form) for inner in tree]
    if form is None or not isinstance(tree, dict):
        return tree
    kept = {}
    for field in dataclasses.fields(form):
        if field.name in tree:
            value = _pruned(tree[field.name], field.type)
            if field.default is dataclasses.MISSING or _is_readable(value, field.type):
                kept[field.name] = value
    return kept


def _form_in(hint: Any) -> Any:
    """The dataclass in a type such as `list[Form] | None`; `None` if there is none."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((form for part in typing.get_args(hint) if (form := _form_in(part)) is not None), None)


def _is_readable(value: Any, hint: Any) -> bool:
    import msgspec

    try:
        msgspec.convert(value, hint, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _unicode(tree: Any) -> Any:
    match tree:
        case str():
            # Half of a pair that two escapes spell is whole after the first step, if its other half is there.
            return tree.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_unicode(inner) for inner in tree]
        case dict():
            return {_unicode(name): _unicode(inner) for name, inner in tree.items()}
        case _:
            return tree


def stated(body: bytes) -> str:
    """The service's own error message, if the body is JSON that has one in a usual place; else empty.

    The places of all vendors are looked at, whatever the dialect: a gateway may stand before any vendor's service, and
    sends errors in a form of its own.
    """
    tree = tree_of(body)
    if isinstance(tree, list) and len(tree) == 1:  # Google's way where an answer would be a list
        tree = tree[0]
    return stated_in(tree.get("error", tree)) if isinstance(tree, dict) else ""


def stated_in(error: Any) -> str:
    """The message of an error that is a tree of JSON; empty if it has none."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def readable(body: bytes) -> str:
    """A body as text. JSON is written anew, because a key in it might be hidden from the eye by escapes."""
    tree = tree_of(body)
    return body.decode("utf-8", "replace") if tree is None else json.dumps(tree, ensure_ascii=False)


def tree_of(body: bytes) -> Any:
    """A body as a tree of JSON; `None` if it is none.

    It may have what JSON has not: constants, a byte order mark, and bytes that are not UTF-8, each of which is U+FFFD.
    """
    try:
        return json.loads(body.removeprefix(_MARK))
    except UnicodeDecodeError:
        words = body.removeprefix(_MARK).decode("utf-8", "replace")
    except (ValueError, RecursionError):
        return None
    try:
        return json.loads(words)
    except (ValueError, RecursionError):
        return None


_MARK = b"\xef\xbb\xbf"


def field_of(body: bytes, name: str) -> Any:
    """A field of the body, `None` if it has none. Of a body that is no whole JSON, the last field of that name."""
    tree = tree_of(body)
    if tree is not None:
        return tree.get(name) if isinstance(tree, dict) else None
    # Within a string the quotation marks would be escaped, so this is no part of an answer's words.
    words = body.decode("utf-8", "replace").rpartition(f'"{name}"')[2].lstrip(" \t\r\n:")
    try:
        return json.JSONDecoder().raw_decode(words)[0]
    except (ValueError, RecursionError):
        return None


def usage_in(body: bytes, form: type[_Shape], field: str = "usage") -> _Shape | None:
    """What a body that is no completion says that is billed for it, in a field of it; `None` if nothing."""
    usage = field_of(body, field)
    try:
        return lenient(usage, form) if isinstance(usage, dict) else None
    except ValueError:
        return None


def count(number: int | None) -> int:
    """A number of tokens: 0 where a service leaves it out, or has one below."""
    return number if number and number > 0 else 0


def dollars(*said: float | str | None) -> float:
    """The first of some prices that a service states, as a number or in words, which is one; NaN if none is."""
    for price in said:
        try:
            number = math.nan if price is None else float(price)
        except ValueError:
            continue
        if 0 <= number < math.inf:
            return number
    return math.nan


def _fault(body: bytes, error: ValueError | RecursionError) -> str:
    """Why a body does not have the form that was asked for.

    The JSON reader's own words are only added to ours in brackets, because they change from one of its releases to the
    next. They say where the fault is, and quote nothing of the body, which may be a completion.
    """
    import msgspec

    if not body:
        return "it is empty"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"its JSON has another form ({error})"
    # The reader checks the bytes of a string only when it decodes that string, and has no type of error of its own for
    # bytes that are not UTF-8. So the whole body is decoded here to find out.
    try:
        body.decode()
    except UnicodeDecodeError as where:
        return f"it is not UTF-8 (byte {where.start})"
    return f"it is not whole JSON ({error})"
