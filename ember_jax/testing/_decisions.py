"""Simulated decisions, by three protocols: what a simulated model would choose by letters, without its answer."""

import json
import math
from typing import Any, NamedTuple

from ..providers.base import Message, Request, Response
from ..providers.sim import SimModel, reply

# How the paths of the endpoints end.
PATHS = ("/decisions", "/systemone")


class _Offered(NamedTuple):
    """The options of a question: by what an answer names them, and with what is said of them."""

    kind: str
    names: list[Any]
    said: list[str]


def decided(model: SimModel, path: str, body: Any) -> tuple[dict[str, Any], list[Response]]:
    """The answer to a request for decisions, and one simulated response that has its tokens.

    OpenAI's questions are a list, and those of the other two protocols are named.

    **Raises:** `KeyError`, `TypeError`, `AttributeError` or `ValueError` for a body that is no such request.
    """
    state = body["state"] if path.endswith("/systemone") else body["input"]
    said = state if isinstance(state, str) else json.dumps(state)
    asked = body["questions"]
    named = dict(enumerate(asked)) if isinstance(asked, list) else dict(asked)
    if not named or not all(isinstance(question["instructions"], str) for question in named.values()):
        raise ValueError("there are no questions, or one that says nothing")
    found = {name: _weighed(model, body["model"], said, question) for name, question in named.items()}
    tokens = sum(response.input_tokens for _, response in found.values())
    answers: Any = {name: answer for name, (answer, _) in found.items()}
    if isinstance(asked, list):
        answers = [_as_openai(answer) for answer in answers.values()]
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
    elif path.endswith("/systemone"):
        usage = {"input_tokens": tokens, "output_tokens": 0}
    else:
        usage = {"total_input_tokens": tokens, "total_output_tokens": 0}
    whole = Response("", tokens, 0, model=body["model"])
    return {"model": body["model"], "answers": answers, "usage": usage}, [whole]


def _as_openai(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as OpenAI has it, whose probabilities are a list."""
    if "probabilities" not in answer:
        return answer
    of_level = answer["type"] == "score"
    probabilities = [
        {"value": int(name) if of_level else name, "probability": p} for name, p in answer["probabilities"].items()
    ]
    return {**answer, "probabilities": probabilities}


def _options(question: Any) -> _Offered:
    kind, criteria = question["type"], question.get("criteria")
    match kind:
        case "predicate" | "noul":
            return _Offered(kind, [True, False], ["yes", "no"])
        case "choice" if criteria is None:
            listed = question["choices"]
            return _Offered(
                kind, [o["value"] for o in listed], [_line(o["value"], o.get("description")) for o in listed]
            )
        case "choice":
            return _Offered(kind, list(criteria), [_line(name, words) for name, words in criteria.items()])
        case "score":
            listed = [o["label"] for o in question["levels"]] if criteria is None else criteria
            return _Offered(kind, list(range(len(listed))), list(listed))
    raise ValueError(f"there is no question of the type {kind!r:.20}")


def _line(name: str, description: str | None) -> str:
    # An option that is called by a number is what is said of it.
    return description if description and name.isdigit() else name


def _weighed(model: SimModel, name: str, state: str, question: Any) -> tuple[dict[str, Any], Response]:
    options = _options(question)
    letters = [chr(ord("A") + i) for i in range(len(options.said))]
    listed = "\n".join(f"{letter}. {said}" for letter, said in zip(letters, options.said, strict=True))
    words = f"{state}\n\n{question['instructions']}\n\n{listed}\n\nReply with the letter of one option."
    response = reply(model, Request("sim", name, (Message("user", words),), {"logprobs": True, "top_logprobs": 255}))
    known = {token: math.exp(logprob) for token, logprob in response.alternatives}
    weights = [known.get(letter, 0.0) for letter in letters]
    probs = [weight / sum(weights) for weight in weights]
    return _answer(options, probs), response


def _answer(options: _Offered, probs: list[float]) -> dict[str, Any]:
    by_name = dict(zip(options.names, probs, strict=True))
    likely = max(by_name, key=by_name.__getitem__)
    match options.kind:
        case "predicate":
            return {"type": "predicate", "name": None, "probability": by_name[True]}
        case "noul":
            return {"type": "noul", "noul": by_name[True], "confidence": max(probs)}
        case "choice":
            return {"type": "choice", "choice": likely, "confidence": max(probs), "probabilities": by_name}
        case _:
            level = sum(i * p for i, p in enumerate(probs))
            told = {str(i): p for i, p in enumerate(probs)}
            return {"type": "score", "score": level, "confidence": max(probs), "probabilities": told}
