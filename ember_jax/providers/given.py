"""What other packages' calls of a model return, as an answer.

They are told by their form and not by their class, so that no package is imported for it: a chat completion (of the
packages `openai` and `litellm`), a message of LangChain, the texts of a DSPy `LM`, what a `transformers` pipeline has.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MalformedResponseError
from .base import Finish, Part, Request, Response
from .dialect import Failure, HTTPAnswer
from .openai import SERVICE, ChatCompletions

_ENDS = {"stop": Finish.STOP, "length": Finish.LENGTH, "content_filter": Finish.CONTENT_FILTER}
_ENDS |= {"tool_calls": Finish.TOOL_CALLS, "end_turn": Finish.STOP, "max_tokens": Finish.LENGTH}


def response_of(result: Any, request: Request) -> Response | None:
    """The answer that a result is; `None` if it is of no known form.

    **Raises:** the `ProviderError` of a chat completion that is no answer.
    """
    if isinstance(result, Sequence) and not isinstance(result, str | bytes) and result:
        result = result[0]  # of several samples the first
    if isinstance(result, str):
        return Response(text=result, model=request.model)
    tree = _tree(result)
    if isinstance(tree, Mapping) and "choices" in tree:
        return _completion(tree, request)
    if hasattr(result, "usage_metadata") and hasattr(result, "content"):
        return _message(result, request)
    if isinstance(result, Mapping):
        said = result.get("generated_text", result.get("text"))
        if isinstance(said, list) and said and isinstance(said[-1], Mapping):  # a whole conversation
            said = said[-1].get("content")
        if isinstance(said, str):
            return Response(text=said, model=request.model)
    return None


def _tree(result: Any) -> Any:
    dump = getattr(result, "model_dump", None)
    return dump(mode="json") if callable(dump) else result


def _completion(tree: Mapping[str, Any], request: Request) -> Response:
    answer = HTTPAnswer(200, {"content-type": "application/json"}, json.dumps(tree, default=str).encode())
    read = ChatCompletions(SERVICE).read(answer, request)
    if isinstance(read, Failure):
        raise read.kind(f"{request.provider}/{request.model}: {read.words.format(*read.said)}", tokens=read.tokens)
    return read if isinstance(read, Response) else read.whole


def _message(message: Any, request: Request) -> Response:
    """A message of LangChain."""
    content, used, about = message.content, message.usage_metadata or {}, message.response_metadata or {}
    parts = [content] if isinstance(content, str) else content
    text = "".join(p if isinstance(p, str) else str(p.get("text") or "") for p in parts)
    read, written = used.get("input_token_details") or {}, used.get("output_token_details") or {}
    ended = _ENDS.get(str(about.get("finish_reason") or about.get("stop_reason") or "stop"), Finish.OTHER)
    calls = getattr(message, "tool_calls", None) or () if "tools" in request.parameters else ()
    return Response(
        text=text,
        input_tokens=int(used.get("input_tokens") or 0),
        output_tokens=int(used.get("output_tokens") or 0),
        cost=math.nan,
        model=str(about.get("model_name") or about.get("model") or request.model),
        request_id=str(getattr(message, "id", None) or ""),
        finish=ended,
        cached_tokens=int(read.get("cache_read") or 0),
        cache_write_tokens=int(read.get("cache_creation") or 0),
        reasoning_tokens=int(written.get("reasoning") or 0),
        tool_calls=tuple(
            Part("tool_call", json.dumps(c.get("args") or {}), str(c.get("name")), str(c.get("id"))) for c in calls
        ),
    )


def unknown(result: Any, request: Request, provider: object) -> MalformedResponseError:
    """The error for a result of no known form."""
    return MalformedResponseError(
        f"{request.provider}/{request.model}: {provider!r} returned {type(result).__name__}; return a str, a Response, "
        "or what the openai, litellm, LangChain, DSPy and transformers packages return."
    )
