"""Vertex AI: Google's models and Anthropic's on Google Cloud, by their own protocols. Nothing here does IO.

Google's are asked as Gemini is, and Anthropic's as Anthropic is, but for the address and for whose credentials are
sent. What the vendors' own packages send there, google-genai 3.6.1 and anthropic 2.14.0, is in `tests/sdk/vertex.json`;
the two have versions of the API of their own, and the older public reference another `anthropic_version`.
"""

import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from . import anthropic, gemini, quota
from .base import Request, Response
from .clouds import GoogleCloud
from .dialect import Dialect, Failure, HTTPAnswer, HTTPRequest, Listing, Meaning, SampledAnswers, Service
from .http import TIMEOUT, HTTPProvider, Vendor

if TYPE_CHECKING:
    import httpx
    import httpx2

SERVICE = Service(
    "Vertex",
    "",  # that of the location
    ("GOOGLE_VERTEX_BASE_URL",),
    ("GOOGLE_API_KEY",),
    otherwise="Without a key check the application default credentials, and that they may use the project's models.",
)


class Vertex(Vendor):
    """Vertex AI on Google Cloud, with the models of Google and of Anthropic (`vertex/claude-…`).

    A model of another publisher, which is `vertex/publisher/model`, is asked as Google's are.

    Requests bear a token of the application default credentials, which `google-auth` finds and renews
    (`pip install "ember_jax[vertex]"`), or an API key, which needs no package.

    **Arguments:**

    - `base_url`: the server's URL without a version, such as that of a private endpoint. By default the environment's
        `GOOGLE_VERTEX_BASE_URL`, else Google's of the location.
    - `api_key`: a key of the project's. By default the environment's `GOOGLE_API_KEY`, if no project and no location is
        given or in the environment; `""` is none.
    - `client`: an `AsyncClient` of httpx or httpx2, for a proxy or another TLS setup. It is used as it is, its timeouts
        included, and never closed here.
    - `timeout`: seconds to wait for the answer to begin, and again for each further piece of it. The whole answer may
        take six times as long.
    - `project`: by default the environment's `GOOGLE_CLOUD_PROJECT`, else that of the credentials. With a key none is
        needed.
    - `location`: by default the environment's `GOOGLE_CLOUD_LOCATION`, else `global`.

    Settings are those of `Gemini`, and of `Anthropic` for its models.

    The environment is read at each call. Prices are looked up by the provider name that it is registered under.

    **Raises:** `ValueError` for a `base_url` that is no whole URL; `TypeError` for another `client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
        project: str | None = None,
        location: str | None = None,
    ):
        cloud = GoogleCloud(project, location)
        self._http = HTTPProvider(Published(SERVICE), base_url, api_key, client, timeout, cloud)


# As the vendors' packages have them.
_GOOGLES, _ANTHROPICS = "/v1beta1", "/v1"
_ANTHROPIC_VERSION = "2026-10-21"
_CLAUDES = "publishers/anthropic/models/"


@dataclass(frozen=True)
class Published(Dialect):
    """The dialects of the models that publishers have on Vertex AI."""

    service: Service
    listing: ClassVar[Listing] = Listing(
        f"{_GOOGLES}/publishers/google/models?pageSize=1000",
        {},
        "publisherModels",
        "name",
        "publishers/google/models/",
        ("nextPageToken", "pageToken"),
    )
    quota_headers: ClassVar[tuple[str, ...]] = quota.FAMILIES

    def authorization(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}

    def build(self, request: Request) -> HTTPRequest | Failure:
        built = self._dialect(request).build(request)
        if isinstance(built, Failure):
            return built
        name = urllib.parse.quote(_name(request), safe="/:@")
        if not _is_claude(request):
            return built._replace(path=f"{_GOOGLES}/{name}:generateContent")
        body = {k: v for k, v in built.body.items() if k != "model"} | {"anthropic_version": _ANTHROPIC_VERSION}
        headers = {k: v for k, v in built.headers.items() if k != "anthropic-version"}
        return HTTPRequest(f"{_ANTHROPICS}/{name}:rawPredict", headers, body)

    def read(self, answer: HTTPAnswer, request: Request) -> Response | SampledAnswers | Failure:
        return self._dialect(request).read(answer, request)

    def most_output(self, request: Request) -> float:
        return self._dialect(request).most_output(request)

    def least_prefix(self, request: Request) -> float:
        return self._dialect(request).least_prefix(request)

    def marks_prefix(self, request: Request) -> bool:
        return self._dialect(request).marks_prefix(request)

    def meaning(self, answer: HTTPAnswer) -> Meaning | None:
        # Errors of Google's are in its form, whosever the model is.
        return gemini.GenerateContent(self.service).meaning(answer) or anthropic.Messages(self.service).meaning(answer)

    def _dialect(self, request: Request) -> gemini.GenerateContent | anthropic.Messages:
        return (anthropic.Messages if _is_claude(request) else gemini.GenerateContent)(self.service)


def _is_claude(request: Request) -> bool:
    return _CLAUDES in _name(request)


def _name(request: Request) -> str:
    """A model's whole name: short ones are Google's or Anthropic's, and `publisher/model` is a publisher's."""
    name = request.model
    if name.startswith(("projects/", "publishers/", "models/")):
        return name
    publisher, slash, model = name.partition("/")
    if slash:
        return f"publishers/{publisher}/models/{model}"
    return f"{_CLAUDES}{name}" if name.startswith("claude-") else f"publishers/google/models/{name}"
