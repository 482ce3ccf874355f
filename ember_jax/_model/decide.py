"""`LLM.decide`: probabilities as arrays, from services that give them for given options without a token of output.

Design note. A question is one call, so that each has a digest, a place in the journal and a lane of its own, and a
later set of questions pays for what is new alone. All of them, in all orders, are lanes of one equation: their words
are rows of one Text, of which short ones are filled up. Those that are about one state and are ready at once share a
request (see `_runtime/batches.py`), whichever lanes, operators or loops they come from.

A service that does not decide without words is asked by letters, as `LLM.choose` asks, with the same digest: what was
chosen before is replayed. Which of the two it is, is known where the call is made and not where it is traced, as models
are data.

Nothing is drawn by a service that decides, so its answer does not depend on a key, and lanes with several keys share
it. The most likely option is then the one that is chosen. The order of the options does change the answer: some
services read the probabilities off at the options' letters. So a question may be asked in several orders, and the
spread between them tells how far its probabilities can be trusted. A predicate has no order where it is decided.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._text import store
from .._text.operations import concatenate, stack, where
from .._text.text import Text, text
from .._types import Key
from ..errors import MalformedResponseError, TextError
from ..providers.base import Message, Request, Response
from ..providers.questions import DecisionKind, DecisionQuestion, unpacked
from .asking import ModelCall, Note, Operands
from .choose import LETTERS, Choice, ChoiceCall, as_one_text

# The most options that any service takes.
_MOST = 255
_TRUE, _FALSE = "yes", "no"


class Predicate(eqx.Module):
    """A question of whether something holds: `llm.decide` gives the probability that it does.

    **Arguments:**

    - `instructions`: what is asked, such as `"Is the customer angry?"`; a string or a Text of rank 0, as all here.
    - `true`, `false`: what it means that it holds, and that it does not; nothing by default.

    **Raises:** `TextError` for what is no such text.
    """

    instructions: Text
    descriptions: Text

    def __init__(self, instructions: str | Text, *, true: str | Text = "", false: str | Text = ""):
        self.instructions = _asked(instructions, "Predicate")
        self.descriptions = stack([_one(true, "Predicate", "true"), _one(false, "Predicate", "false")])


class Options(eqx.Module):
    """A question of which option it is: `llm.decide` gives an `ember.Choice` among them.

    **Arguments:**

    - `instructions`: what is asked.
    - `options`: 2 to 255 strings, or a Text of rank 1; or a dict of options with what each of them means. They are to
        differ. Of services that do not decide without words at most 26 can be asked about.

    **Raises:** `TextError` for what is no such text, and for another number of options.
    """

    instructions: Text
    options: Text
    descriptions: Text

    def __init__(self, instructions: str | Text, options: Sequence[str | Text] | Text | Mapping[str, str | Text]):
        self.instructions = _asked(instructions, "Options")
        self.options, self.descriptions = _listed(options, "Options", "options")


class Levels(eqx.Module):
    """A question of how much: `llm.decide` gives an `ember.Rating` among levels.

    **Arguments:**

    - `instructions`: what is asked.
    - `levels`: 2 to 255 strings from the lowest level to the highest, or a Text of rank 1; or a dict of levels with
        what each of them means. vLLM and SGLang take at most 10.

    **Raises:** `TextError` for what is no such text, and for another number of levels.
    """

    instructions: Text
    levels: Text
    descriptions: Text

    def __init__(self, instructions: str | Text, levels: Sequence[str | Text] | Text | Mapping[str, str | Text]):
        self.instructions = _asked(instructions, "Levels")
        self.levels, self.descriptions = _listed(levels, "Levels", "levels")


# What a model may be asked to decide; a string is a predicate.
Decidable: TypeAlias = str | Text | Predicate | Options | Levels


class Rating(NamedTuple):
    """How much something is, among levels that are counted from 0.

    **Fields:**

    - `level`: float32, the expected level.
    - `probs`: `float32[n]`, the probability of each level.
    """

    level: jax.Array
    probs: jax.Array


class Averaged(NamedTuple):
    """What was decided in several orders of the options.

    **Fields:**

    - `value`: as it is in one order, of the mean probabilities.
    - `bias`: float32, the largest difference that the order has made to the probability of one option. Near 0 the order
        is no matter; near 1 it decides.
    """

    value: Any
    bias: jax.Array


def questions_of(questions: Any) -> dict[str, Predicate | Options | Levels]:
    """Questions by name, as questions; one by itself has an empty name.

    **Raises:** `TypeError` for what is none; `ValueError` if there are none.
    """
    if not isinstance(questions, Mapping):
        return {"": _question(questions, "questions")}
    if not questions:
        raise ValueError('llm.decide(state, {}): there are no questions. Give some, as in {"angry": "Is it angry?"}.')
    return {name: _question(question, f"questions[{name!r}]") for name, question in questions.items()}


def _question(given: Any, place: str) -> Predicate | Options | Levels:
    if isinstance(given, str | Text):
        return Predicate(given)
    if isinstance(given, Predicate | Options | Levels):
        return given
    raise TypeError(
        f"llm.decide: {place} is {type(given).__name__}, and a question is a string, an ember.Predicate(instructions), "
        "an ember.Options(instructions, options) or an ember.Levels(instructions, levels); several are a dict of these."
    )


def kind_of(question: Predicate | Options | Levels) -> DecisionKind:
    """Which kind a question is of, as messages name it."""
    match question:
        case Predicate():
            return "predicate"
        case Options():
            return "choice"
        case Levels():
            return "score"


def number_of_options(question: Predicate | Options | Levels) -> int:
    """How many options it has."""
    return question.descriptions.shape[0]


# -- the questions as rows -------------------------------------------------------------------------------------------


class QuestionRows(NamedTuple):
    """One question as rows of a table, one for each order of its options.

    **Fields:**

    - `question`: the question.
    - `options`: its options.
    - `orders`: of each order, the options' places in it: `int32[n]`.
    """

    question: Predicate | Options | Levels
    options: Text
    orders: list[Any]

    def rows(self, width: int) -> list[Text]:
        """The rows, filled up to a width."""
        n = len(self.options)
        head = text([f"{kind_of(self.question)} {n}"])
        filled = [text([""] * (width - 2 - 2 * n))] if width > 2 + 2 * n else []
        before = [head, self.question.instructions.reshape(1)]
        said = [self.options, self.question.descriptions]
        # The first order is as they are given.
        ways = [said, *([words[order] for words in said] for order in self.orders[1:])]
        return [concatenate([*before, *way, *filled]) for way in ways]

    def result(self, index: jax.Array, probs: jax.Array, chosen: Text) -> Any:
        """What the call has given for the rows as what a user is given."""
        probs = probs[:, : len(self.options)]
        if len(self.orders) == 1:
            return self._value(index[0], probs[0], chosen[0])
        # Probabilities by option, and not by place.
        by_option = jnp.stack([p[jnp.argsort(jnp.asarray(o))] for o, p in zip(self.orders, probs, strict=True)])
        mean = jnp.mean(by_option, 0)
        best = jnp.argmax(mean).astype(jnp.int32)
        failed = jnp.isnan(by_option[:, 0])
        words = where(jnp.any(failed), chosen[jnp.argmax(failed)], self.options[best])
        bias = jnp.max(jnp.max(by_option, 0) - jnp.min(by_option, 0))
        return Averaged(self._value(best, mean, words), bias)

    def _value(self, index: jax.Array, probs: jax.Array, chosen: Text) -> Any:
        match self.question:
            case Predicate():
                return probs[0]
            case Options():
                return Choice(index, probs, chosen)
            case Levels():
                return Rating(jnp.sum(jnp.arange(probs.shape[0], dtype=probs.dtype) * probs), probs)


def asked(question: Predicate | Options | Levels, orders: int, key: Key | None) -> QuestionRows:
    """A question with the orders that its options are asked in: the first is as they are given."""
    match question:
        case Predicate():
            options, ways = text([_TRUE, _FALSE]), _turned(2, orders)
        case Levels():  # in any other order it would be no scale
            ways = [np.arange(len(question.levels)), np.arange(len(question.levels))[::-1].copy()][:orders]
            options = question.levels
        case Options():
            options, n = question.options, len(question.options)
            ways = _turned(n, orders)
            if key is not None and orders > 1:
                drawn = [jax.random.permutation(k, n) for k in jax.random.split(key, orders - 1)]
                ways = [np.arange(n), *drawn]
    return QuestionRows(question, options, ways)


def _turned(n: int, orders: int) -> list[Any]:
    return [np.roll(np.arange(n), -i) for i in range(min(orders, n))]


def table(questions: Sequence[QuestionRows]) -> Text:
    """The rows of all questions, `Text["rows width"]`."""
    width = 2 + 2 * max(len(one.options) for one in questions)
    return stack([row for one in questions for row in one.rows(width)])


# -- the call --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DecideCall(ModelCall):
    """One question in one order.

    **Attributes:**

    - `most`: how many options a row has room for.
    - `is_whole`: whether the instructions are a whole prompt, which says the state itself.
    - `is_lettered`: whether it asks by letters.
    """

    operands: Operands
    most: int
    is_whole: bool = False
    is_lettered: bool = False

    @property
    def out(self) -> Sequence[jax.ShapeDtypeStruct]:
        return ChoiceCall(self.operands, self.most).out

    def __str__(self) -> str:
        return "LLM.decide"

    def instead(self) -> "DecideCall | None":
        return None if self.is_lettered else dataclasses.replace(self, is_lettered=True)

    def asks(self, request: Request, extra: Sequence[np.ndarray]) -> Request:
        question = _of_row(extra[0])
        if self.is_lettered:
            return self._by_letters(request, question)
        *before, state = request.messages
        if self.is_whole:
            said = question.instructions.removeprefix(state.content).strip()
            question = dataclasses.replace(question, instructions=said or question.instructions)
        if question.kind == "predicate" and question.options[0] != _TRUE:  # it is asked in one order alone
            question = dataclasses.replace(
                question, options=question.options[::-1], descriptions=question.descriptions[::-1]
            )
        return dataclasses.replace(request, messages=(*before, state, question.message), sample=None)

    def _by_letters(self, request: Request, question: DecisionQuestion) -> Request:
        if len(question.options) > len(LETTERS):
            raise TextError(of_letters(f"{request.provider}/{request.model}", len(question.options)))
        *before, state = request.messages
        prompt = Message("user", question.instructions) if self.is_whole else state.with_words(question.instructions)
        choice = ChoiceCall(self.operands, len(question.options))
        return choice.asks(dataclasses.replace(request, messages=(*before, prompt)), [_lines(question)])

    def read(self, request: Request, response: Response, extra: Sequence[np.ndarray], note: Note) -> list[np.ndarray]:
        question = _of_row(extra[0])
        n = len(question.options)
        if self.is_lettered:
            index, found, _ = ChoiceCall(self.operands, n).read(request, response, [_lines(question)], note)
        else:
            try:
                found = unpacked(response.text, n)
            except ValueError as error:
                raise MalformedResponseError(f"{request.provider}/{request.model}: {error}") from None
            if question.kind == "predicate" and question.options[0] != _TRUE:
                found = found[::-1]
            index = np.asarray(found.argmax(), np.int32)
        probs = np.zeros(self.most, np.float32)
        probs[:n] = found
        return [index, probs, np.array(extra[0][2 + int(index)], np.uint32)]


def _of_row(row: np.ndarray) -> DecisionQuestion:
    """The question that a row is of; one without words, as an estimate is told, is a predicate."""
    head, instructions, *words = store.get_array(row)
    kind, _, count = head.partition(" ")
    if not count:
        return DecisionQuestion("predicate", instructions, (_TRUE, _FALSE), ("", ""))
    n = int(count)
    return DecisionQuestion(kind, instructions, tuple(words[:n]), tuple(words[n : 2 * n]))  # type: ignore[arg-type]


def of_letters(model: str, options: int) -> str:
    """What is said of more options than there are letters."""
    return (
        f"{model} does not decide without words, and is asked by letters about at most {len(LETTERS)} options; got "
        f"{options}. Choose in rounds, the best of each group and then among those, or ask another model."
    )


def _lines(question: DecisionQuestion) -> np.ndarray:
    """The digests of the options as they are listed behind letters."""
    lines = [f"{o}: {d}" if d else o for o, d in zip(question.options, question.descriptions, strict=True)]
    return np.stack(list(map(store.put_one, lines)))


# -- what is given ---------------------------------------------------------------------------------------------------


def _asked(instructions: Any, place: str) -> Text:
    value = _one(instructions, place, "instructions")
    if isinstance(instructions, str) and not instructions.strip():
        raise TextError(f"{place}(instructions={instructions!r}): say what is asked, as in {place}('Is it angry?', …).")
    return value


def _one(value: Any, place: str, name: str) -> Text:
    if not isinstance(value, str | Text):
        raise TextError(f"{place}({name}=…) takes a string or a Text, not {type(value).__name__}.")
    value = text(value)
    if value.shape:
        raise TextError(
            f"{place}({name}=…) has shape {list(value.shape)}, and takes one text. For one of its own in each lane, "
            f"map: `jax.vmap(lambda words: llm.decide(state, ember.{place}(words, …)))(many)`."
        )
    return value


def _listed(given: Any, place: str, name: str) -> tuple[Text, Text]:
    """Options and what they mean, each `Text["n"]`."""
    said = [""] * len(given) if isinstance(given, Mapping | list | tuple | Text) else []
    if isinstance(given, Mapping):
        given, said = list(given), ["" if description is None else description for description in given.values()]
    if isinstance(given, str):
        raise TextError(f'{place}({name}=…) takes a list of strings, as in ["yes", "no"]; got a string.')
    options = as_one_text(given)
    if options.ndim != 1:
        raise TextError(
            f"{place}({name}=…) has shape {list(options.shape)}, and takes one list. For one of its own in each lane, "
            f"map: `jax.vmap(lambda words: llm.decide(state, ember.{place}(…, words)))(many)`."
        )
    if not 2 <= len(options) <= _MOST:
        raise TextError(f"{place}({name}=…) takes 2 to {_MOST}; got {len(options)}.")
    return options, stack([_one(words, place, name) for words in said])
