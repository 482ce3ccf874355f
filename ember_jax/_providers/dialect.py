"""What a vendor's protocol is, without any IO: requests as data, and what answers say.

A *dialect* is one such protocol. `http.HTTPProvider` holds a dialect and does all the IO around it: it owns the
client, finds the key and the base URL, waits, reads the headers that ask to wait, scrubs credentials, and raises the
typed errors. So a dialect can be tested with data alone, and a vendor is one file:

1. a final `Dialect`, which builds the vendor's requests and reads its answers;
2. a `Service`: where the vendor is, and the environment variables that its users set;
3. a final `http.Vendor` with the vendor's name, whose `__init__` holds an `HTTPProvider` of the two, and whose
   docstring says what users must know.

`__init__.py` then names the vendor: for users of `ember.providers`, and as the beginning of model ids. `openai.py` is
the example to copy.

A dialect raises nothing. Its failures are data too, in which the service's own words stand apart from ours: they may
hold a key, and where the key is known they are scrubbed, all of them, in one place. (A dialect that raised would have
to scrub by itself, and the one place that forgets to would show a key.)

The body of a request is a tree and not bytes, as each protocol sends JSON: it is encoded, and what is no JSON refused,
once for all; and a batch of requests is made of such trees. The method is POST in all of them.
"""

import abc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from .._errors import MalformedResponseError, ProviderError
from .base import Request, Response, Tokens

_Form = TypeVar("_Form")


@dataclass(frozen=True)
class Service:
    """Where a service is, and where its users keep what it needs.

    **Fields:**

    - `maker`: the name of the class that users make its provider with; errors tell them to.
    - `base_url`: what the paths of a dialect are appended to, without a slash at its end. Nobody asks this host without
        a key.
    - `base_variables`: environment variables that may hold another base URL; the first that is set counts.
    - `key_variables`: environment variables that may hold the key; the first that is set counts. Errors name the first.
    """

    maker: str
    base_url: str
    base_variables: tuple[str, ...]
    key_variables: tuple[str, ...]


class HTTPRequest(NamedTuple):
    """What to POST: a path below the base URL, headers besides the key's, and JSON."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class HTTPAnswer(NamedTuple):
    """What came back, whole; the headers' names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """Why a request cannot be sent, or what an answer says instead of a completion.

    **Fields:**

    - `kind`: what it is raised as.
    - `words`: ours, with a `{}` for each of the service's; the model id is put before them.
    - `said`: the service's. They are scrubbed, put on one line and trimmed before they are filled in.
    - `tokens`: what the service says that it bills all the same.
    """

    kind: type[ProviderError]
    words: str
    said: tuple[str, ...] = ()
    tokens: Tokens | None = None


class Meaning(NamedTuple):
    """What a status is raised as, and advice that is put behind the service's own words."""

    kind: type[ProviderError]
    advice: str = ""


class Dialect(abc.ABC):
    """One protocol, abstract. Dialects are values: they have no state, and one may serve any number of providers.

    **Attributes:**

    - `service`: the service that is asked.
    - `quota_headers`: the headers that tell its limits, as families of `quota`.
    """

    service: Service
    quota_headers: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def authorization(self, key: str) -> Mapping[str, str]:
        """The headers that a key is sent in; it is never empty."""

    @abc.abstractmethod
    def build(self, request: Request) -> HTTPRequest | Failure:
        """What to send for a request, or why nothing can be sent."""

    @abc.abstractmethod
    def read(self, answer: HTTPAnswer, request: Request) -> Response | Failure:
        """What an answer with a status of success says.

        Its quota is not the dialect's to fill in, and neither are statuses of failure its to read.
        """

    @abc.abstractmethod
    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        """What a status of failure means where the body shows that it is not what it seems to be, else `None`.

        The service's own words are found without a dialect, see `stated`.
        """


def decoded(answer: HTTPAnswer, form: type[_Form], noun: str, hint: str) -> _Form | Failure:
    """The body as a value of a dataclass. Fields that are not the form's are ignored.

    **Arguments:**

    - `noun`: what the body should be, such as `"a chat completion"`.
    - `hint`: what to look at where the body is not even said to be JSON, as that of a web page.
    """
    # Imported on the first answer, so that `import ember_jax` stays cheap.
    import msgspec

    fault: ValueError | RecursionError
    try:
        return msgspec.json.decode(answer.body, type=form)
    except (ValueError, RecursionError) as error:
        fault = error
        # Answers that were paid for are read as far as they can be. Most are strict JSON, which msgspec reads in a
        # tenth of the time, so leniency is tried second.
        # Some gateways state an error with status 200.
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


def lenient(tree: Any, form: type[_Form]) -> _Form:
    """A tree of JSON as a value of a dataclass. Raises `ValueError` where it has another form.

    What services send although it is no JSON, or of another type than it should be, is read as what it means: the
    constants `NaN` and `-Infinity`, whole numbers with a point, numbers in quotes; half of a surrogate pair is U+FFFD.
    """
    import msgspec

    return msgspec.convert(_unicode(tree), form, strict=False)


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
    """The service's own error message, where the body is JSON that has one in a usual place.

    The places are those of all vendors together, and not of one dialect: gateways, which stand before any of them, have
    a form of their own.
    """
    tree = tree_of(body)
    error = tree.get("error", tree) if isinstance(tree, dict) else None
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return error if isinstance(error, str) else ""


def readable(body: bytes) -> str:
    """A body as text. JSON is written anew, because a key in it might be hidden from the eye by escapes."""
    tree = tree_of(body)
    return body.decode("utf-8", "replace") if tree is None else json.dumps(tree, ensure_ascii=False)


def tree_of(body: bytes) -> Any:
    """A body as a tree of JSON, also with constants and a byte order mark that JSON has not; `None` if it is none."""
    try:
        return json.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None


def _fault(body: bytes, error: ValueError | RecursionError) -> str:
    """Why a body does not have the form that was asked for.

    The reader's own words are only added to ours: they change from one release to the next. They say where the fault
    is, and quote nothing of the body, which may be a completion.
    """
    import msgspec

    if not body:
        return "it is empty"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"its JSON has another form ({error})"
    # The reader looks at the bytes of a string only when it decodes it, and has no type of error for what it finds.
    try:
        body.decode()
    except UnicodeDecodeError as where:
        return f"it is not UTF-8 (byte {where.start})"
    return f"it is not whole JSON ({error})"
