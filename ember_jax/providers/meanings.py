"""What failures mean that answers of several dialects tell."""

from ..errors import AuthenticationError, RefusedRequestError
from .dialect import HTTPAnswer, Meaning, Service

# As a refusal for too many requests it would be tried again, and never succeed.
NO_CREDIT = Meaning(RefusedRequestError, " The account has no credit; waiting does not help.")


def of_openai(answer: HTTPAnswer) -> Meaning | None:
    """What OpenAI means, and those who imitate it: it answers 429 as well for an account without credit."""
    return NO_CREDIT if answer.status == 429 and b"insufficient_quota" in answer.body else None


def of_litellm(answer: HTTPAnswer, service: Service) -> Meaning | None:
    """What a LiteLLM proxy means, which speaks the protocols of several services.

    Without a database it looks for every key but its own in that database, and answers 400.
    """
    if answer.status == 400 and b"no_db_connection" in answer.body:
        return Meaning(AuthenticationError, f" LiteLLM does not know the key.{service.advice}")
    return None
