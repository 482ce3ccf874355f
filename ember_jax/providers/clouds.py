"""Clouds: where a service is by the user's own region or project, and with whose credentials it is asked.

Design note. AWS and Google have packages, `botocore` and `google-auth`, that find credentials in a dozen places and
renew those that expire; and requests to AWS are signed. Nothing of it is written anew here. The packages are needed by
whom they find credentials for, and not by who has a key. They wait for files and for services, so they are asked in a
thread (`fetch`), once for all requests in flight; what a request then gets (`authorization`) is there, and waits for
nothing. It is made for each attempt anew, over the bytes that are sent.

A credential is shown nowhere. The words of a service, and of these packages, are scrubbed of what is in use
(`secrets`): AWS's refusal of a signature quotes the request with its session token.
"""

import abc
import importlib
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from .._regex import regex
from ..errors import AuthenticationError, ConnectionFailedError, RefusedRequestError
from .dialect import Failure
from .environment import first_set, settings


class Cloud(abc.ABC):
    """Where the services of a cloud are, and with whose credentials they are asked, abstract.

    An instance may be pickled; what it has found stays behind.
    """

    @property
    @abc.abstractmethod
    def arguments(self) -> str:
        """Those of its arguments that were given, as code. None of them is a credential."""

    @abc.abstractmethod
    def host(self) -> str:
        """The base URL. Raises `RefusedRequestError` that names the variable which is missing."""

    @abc.abstractmethod
    def takes_key(self) -> bool:
        """Whether a key counts that the environment has, rather than credentials."""

    @abc.abstractmethod
    def placed(self, path: str, *, has_key: bool) -> str:
        """A dialect's path as it is below the base URL, for who asks with a key, or with credentials.

        **Raises:** `RefusedRequestError` that names the variable which is missing.
        """

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Whether credentials are there, and not about to expire. Waits for nothing."""

    @abc.abstractmethod
    def fetch(self) -> Failure | None:
        """Finds credentials, and renews them, or says why there are none. Waits, and may be called in any thread."""

    @abc.abstractmethod
    def authorization(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> dict[str, str]:
        """The headers to add to a request that is sent like this. Called after `fetch`; waits for nothing.

        **Raises:** `RefusedRequestError` that names the variable which is missing.
        """

    @abc.abstractmethod
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown of the credentials that are in use."""

    @abc.abstractmethod
    def found(self) -> str:
        """In a few words where credentials were found, or what is missing. Waits as `fetch` does."""


class OneForAll:
    """Lets one thread fetch for all that ask meanwhile: they have what came of it, also if that is a failure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._failure: Failure | None = None

    @property
    def runs(self) -> int:
        """How often was fetched so far."""
        return self._runs

    def fetched(self, since: int, is_ready: Callable[[], bool], fetch: Callable[[], Failure | None]) -> Failure | None:
        """What came of fetching, by this thread or by another after `since` runs; `None` if it is there."""
        with self._lock:
            if is_ready():
                return None
            if self._runs == since:
                self._failure = fetch()
                self._runs += 1
            return self._failure


# Regions are part of a host, to which credentials are sent.
_REGION = regex(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def _checked(region: str, name: str) -> str:
    if not _REGION.fullmatch(region):
        raise RefusedRequestError(f"{region!r} is no {name}; the names have small letters, digits and hyphens.")
    return region


# -- AWS -------------------------------------------------------------------------------------------------------------

_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
# Regions of other partitions than the one for all, by how their names begin [botocore 1.44.8].
_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "eusc-": "amazonaws.eu",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
    "eu-isoe-": "cloud.adc-e.uk",
    "us-isof-": "csp.hci.ic.gov",
}
_NO_AWS = (
    "there is no API key. Set the environment variable AWS_BEARER_TOKEN_BEDROCK, or register('bedrock', "
    "Bedrock(api_key=…))"
)


class AWS(Cloud):
    """Amazon Bedrock, with a profile's credentials; `None` is what the environment says.

    **Arguments:**

    - `region`: such as `us-east-1`. By default that of `AWS_REGION`, `AWS_DEFAULT_REGION`, or of the profile.
    - `profile`: a name in the files of AWS's own tools.
    """

    def __init__(self, region: str | None, profile: str | None):
        self._region = region
        self._profile = profile
        self._asking = OneForAll()
        # A session of botocore, with the environment that it was made in.
        self._made: tuple[frozenset[tuple[str, str]], Any] | None = None
        # The environment that credentials were found in, those, which renew themselves, and what they were last.
        self._found: tuple[frozenset[tuple[str, str]], Any, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return AWS, (self._region, self._profile)

    @property
    def arguments(self) -> str:
        return _as_code(region=self._region, profile=self._profile)

    def host(self) -> str:
        region = self._in_region()
        suffix = next((suffix for begin, suffix in _SUFFIXES.items() if region.startswith(begin)), "amazonaws.com")
        return f"https://bedrock-runtime.{region}.{suffix}"

    def takes_key(self) -> bool:
        return self._profile is None

    def placed(self, path: str, *, has_key: bool) -> str:
        return path

    def is_ready(self) -> bool:
        found = self._found
        if found is None or found[0] != settings("AWS_"):
            return False
        # Credentials that do not expire have no such question.
        needed = getattr(found[1], "refresh_needed", None)
        return needed is None or not needed()

    def fetch(self) -> Failure | None:
        return self._asking.fetched(self._asking.runs, self.is_ready, self._fetch)

    def _fetch(self) -> Failure | None:
        try:
            exceptions = importlib.import_module("botocore.exceptions")
        except ImportError:
            words = f'{_NO_AWS}; or `pip install "ember_jax[bedrock]"` for the credentials of AWS.'
            return Failure(AuthenticationError, words)
        now = settings("AWS_")
        try:
            credentials = self._session().get_credentials()
            frozen = credentials and credentials.get_frozen_credentials()
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            return Failure(ConnectionFailedError, "AWS is not reached for credentials: {}", (str(error),))
        except (exceptions.BotoCoreError, exceptions.ClientError) as error:
            return Failure(AuthenticationError, "there are no credentials of AWS: {}", (str(error),))
        if not frozen:
            return Failure(
                AuthenticationError,
                f"{_NO_AWS}; or give botocore credentials where it looks for them, such as AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            )
        self._found = now, credentials, frozen
        return None

    def authorization(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> dict[str, str]:
        assert self._found is not None
        request = importlib.import_module("botocore.awsrequest").AWSRequest(method, url, dict(headers), content)
        signer = importlib.import_module("botocore.auth").SigV4Auth(self._found[2], "bedrock", self._in_region())
        signer.add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in headers}

    def secrets(self) -> tuple[str, ...]:
        frozen = self._found and self._found[2]
        return tuple(filter(None, (frozen.secret_key, frozen.token))) if frozen else ()

    def found(self) -> str:
        failure = self.fetch()
        if failure is None:
            assert self._found is not None
            return f"credentials of AWS ({self._found[1].method})"
        has_package = "pip install" not in failure.words
        return "no AWS_BEARER_TOKEN_BEDROCK" + (", no credentials of AWS" if has_package else ", no botocore")

    def _in_region(self) -> str:
        region = self._region or first_set(_REGIONS)[1] or self._region_of_profile()
        if not region:
            raise RefusedRequestError(
                "There is no region. Set the environment variable AWS_REGION, or give it: Bedrock(region='us-east-1')."
            )
        return _checked(region, "region of AWS")

    def _region_of_profile(self) -> str:
        """The region in the files of AWS's tools; empty if it has none, or if botocore is not there to read them."""
        try:
            exceptions = importlib.import_module("botocore.exceptions")
        except ImportError:
            return ""
        try:
            return self._session().get_config_variable("region") or ""
        except exceptions.BotoCoreError as error:
            raise RefusedRequestError(f"The region cannot be read: {error}") from None

    def _session(self) -> Any:
        """A session of botocore, which reads the environment once. Making it reads no file."""
        made, now = self._made, settings("AWS_")
        if made is None or made[0] != now:
            session = importlib.import_module("botocore.session").Session(profile=self._profile)
            made = self._made = now, session
        return made[1]


# -- Google ----------------------------------------------------------------------------------------------------------

_PROJECTS, _LOCATIONS = ("GOOGLE_CLOUD_PROJECT",), ("GOOGLE_CLOUD_LOCATION",)
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_NO_GOOGLE = (
    "there is no API key. Set the environment variable GOOGLE_API_KEY without a project, or register('vertex', "
    "Vertex(api_key=…))"
)


class GoogleCloud(Cloud):
    """Vertex AI, with the application default credentials; `None` is what the environment says.

    **Arguments:**

    - `project`: its id. By default that of `GOOGLE_CLOUD_PROJECT`, or of the credentials.
    - `location`: such as `europe-west4`. By default that of `GOOGLE_CLOUD_LOCATION`, else `global`.
    """

    def __init__(self, project: str | None, location: str | None):
        self._project = project
        self._location = location
        self._asking = OneForAll()
        # The environment that credentials were found in, the credentials, and their project.
        self._found: tuple[frozenset[tuple[str, str]], Any, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return GoogleCloud, (self._project, self._location)

    @property
    def arguments(self) -> str:
        return _as_code(project=self._project, location=self._location)

    def host(self) -> str:
        location = self._in_location()
        # As google-genai 3.6.1 has it.
        if location == "global":
            return "https://aiplatform.googleapis.com"
        if location in ("us", "eu"):
            return f"https://aiplatform.{location}.rep.googleapis.com"
        return f"https://{location}-aiplatform.googleapis.com"

    def takes_key(self) -> bool:
        # Google's own package prefers a project to a key, which mostly is one for Gemini.
        return not (self._project or self._location or first_set((*_PROJECTS, *_LOCATIONS))[1])

    def placed(self, path: str, *, has_key: bool) -> str:
        version, rest = path[1:].split("/", 1)
        if rest.startswith("projects/") or (has_key and self._project is None):
            return path
        project = self._project or first_set(_PROJECTS)[1] or self._project_of_credentials()
        if not project:
            raise RefusedRequestError(
                "There is no project. Set the environment variable GOOGLE_CLOUD_PROJECT, or give it: "
                "Vertex(project='…')."
            )
        quoted = urllib.parse.quote(project, safe=":")  # a domain's project is `domain:name`
        return f"/{version}/projects/{quoted}/locations/{self._in_location()}/{rest}"

    def is_ready(self) -> bool:
        found = self._found
        return found is not None and found[0] == settings("GOOGLE_", "CLOUDSDK_") and bool(found[1].valid)

    def fetch(self) -> Failure | None:
        return self._asking.fetched(self._asking.runs, self.is_ready, self._fetch)

    def _fetch(self) -> Failure | None:
        try:
            exceptions = importlib.import_module("google.auth.exceptions")
            transport = importlib.import_module("google.auth.transport.requests")
            requests = importlib.import_module("requests")
        except ImportError:
            words = f'{_NO_GOOGLE}; or `pip install "ember_jax[vertex]"` for the credentials of Google.'
            return Failure(AuthenticationError, words)
        try:
            credentials = self._default()[1]
            with requests.Session() as session:
                credentials.before_request(transport.Request(session), "POST", self.host(), {})
        except exceptions.DefaultCredentialsError as error:
            words = (
                f"{_NO_GOOGLE}; or give google-auth credentials, as by `gcloud auth application-default login` or "
                "GOOGLE_APPLICATION_CREDENTIALS. It says: {}"
            )
            return Failure(AuthenticationError, words, (str(error),))
        except exceptions.TransportError as error:
            return Failure(ConnectionFailedError, "Google is not reached for credentials: {}", (str(error),))
        except exceptions.GoogleAuthError as error:
            return Failure(AuthenticationError, "there are no credentials of Google: {}", (str(error),))
        return None

    def authorization(self, method: str, url: str, headers: Mapping[str, str], content: bytes) -> dict[str, str]:
        assert self._found is not None
        added: dict[str, str] = {}
        self._found[1].apply(added)
        return added

    def secrets(self) -> tuple[str, ...]:
        token = self._found and self._found[1].token
        return (token,) if token else ()

    def found(self) -> str:
        try:
            exceptions = importlib.import_module("google.auth.exceptions")
        except ImportError:
            return "no GOOGLE_API_KEY, no google-auth"
        try:
            _, _, of_credentials = self._default()
        except exceptions.GoogleAuthError:
            return "no GOOGLE_API_KEY, no credentials of Google"
        project = self._project or first_set(_PROJECTS)[1] or of_credentials
        return f"credentials of Google ({project or 'no GOOGLE_CLOUD_PROJECT'})"

    def _in_location(self) -> str:
        return _checked(self._location or first_set(_LOCATIONS)[1] or "global", "location of Google Cloud")

    def _project_of_credentials(self) -> str:
        """That of the credentials; empty if they have none, or if there are none."""
        try:
            exceptions = importlib.import_module("google.auth.exceptions")
        except ImportError:
            return ""
        try:
            return self._default()[2]
        except exceptions.GoogleAuthError:
            return ""

    def _default(self) -> tuple[frozenset[tuple[str, str]], Any, str]:
        """The application default credentials, as they were found, which may wait for them to be."""
        found, now = self._found, settings("GOOGLE_", "CLOUDSDK_")
        if found is None or found[0] != now:
            credentials, project = importlib.import_module("google.auth").default(scopes=_SCOPES)
            found = self._found = now, credentials, project or ""
        return found


def _as_code(**given: str | None) -> str:
    return "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
