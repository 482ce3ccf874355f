"""Reads networks in the compact notation; its grammar stands in `_notation.py`."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from .. import LLM, errors
from ._chain import Chain
from ._ensemble import Ensemble
from ._members import Member
from ._named import Flow, Reference
from ._notation import BY_WORD, MODEL, Construct

_T = TypeVar("_T")

_SPACE = re.compile(r"\s*")
_COUNT = re.compile(r"[0-9]{1,9}")
_LLM = re.compile(r"LLM\b")
_WORD = re.compile(r"[^\W\d]\w*")
_NAMED = re.compile(r"[^\W\d]\w*(?=\s*=)")
_OLDER = re.compile(r"[0-9]+:[A-Z]+\b")  # the notation of the Ember before this one: "3:E:gpt-4o:0.7"
_WORD_OF = re.compile(r"^[0-9]+|@.*")  # the parts of `5e@sim/small` that do not belong to the word `e`
_UNKNOWN = re.compile(r"[\w.:@+/-]+")  # characters that a user may have meant as a model id, for an error to quote
_JSON = json.JSONDecoder(strict=False)  # not strict, so that strings may go over several lines
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)  # a bracket, or a string whose brackets do not count

# The deepest nesting that is read. The methods of the parser call each other several times for each level, and Python
# allows about a thousand nested calls.
_DEEPEST = 100

_OPERAND = "a model (`sim/small`), a construct (`5E@sim/small`), `$component`, a name, `[…, …]` or `(…)`"


def parse(text: str | Sequence[str], /, **components: Member) -> Member:
    """Reads a network in the compact notation.

    ```python
    op = non.parse("5E@sim/small(temperature=0.7) | J@sim/large")
    op = non.parse("[2E@sim/small, 3E@sim/medium, $mine] | V@sim/large", mine=my_operator)
    op = non.parse("drafts = 5E@sim/small; best = drafts | V@sim/medium; best, drafts | J@sim/large")
    ```

    `5E` is five samples (`Ensemble`), `M` the most common answer (`Vote`), `J` a `Judge`, `V` a `Verifier`; the other
    constructs go by their names. What stands before `|` is what a construct works over, what stands after `@` is what
    it works with, and its settings stand in parentheses, as JSON. Any other operator after `|`, or a string, is a step
    of a `Chain`. A named flow is asked once, wherever its name stands.

    **Arguments:**

    - `text`: the notation; or a list of parts, which are joined by `|`, as in `["5E@sim/small", "J@sim/large"]`.
    - `components`: for each `$name` in the text the operator that it stands for.

    **Returns:** an operator of `(question, key=None)`, made of the constructs of `ember.non`.

    **Raises:** `NotationError`, which points at the character, for what cannot be read, for a model that no provider
    knows, and for what a construct does not take; `TypeError` for components that are no operators or are not used.
    """
    for name, component in components.items():
        if not callable(component):
            raise TypeError(f"parse(…, {name}={component!r:.60}): give an operator, such as `{name}=non.parse(…)`.")
    if not isinstance(text, str) and not (isinstance(text, list | tuple) and all(isinstance(t, str) for t in text)):
        raise TypeError(f"parse takes a string or a list of strings, not {text!r:.60}.")
    parser = _Parser(text if isinstance(text, str) else "\n| ".join(text), components)
    op = parser.whole()
    if unused := components.keys() - parser.used:
        raise TypeError(f"parse(…, {min(unused)}=…) is not used: `${min(unused)}` does not stand in the text.")
    return op


class _Setting(NamedTuple):
    at: int
    name: str
    value: Any


class _Parser:
    """Reads a text by recursive descent: it holds the text, how far it is read, and the names that may stand there."""

    def __init__(self, text: str, components: dict[str, Member]):
        self.text = text
        self.at = 0
        self.components = components
        self.used: set[str] = set()  # components
        self.names: dict[str, int] = {}  # of flows, where each is defined
        self.unread: set[int] = set()  # definitions that nothing refers to so far
        self.depth = 0

    # -- characters ----------------------------------------------------------------------------------------------

    def skip(self) -> int:
        """Goes over white space; returns the position after it."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches anything
        return self.at

    def take(self, pattern: re.Pattern[str] | str) -> str | None:
        """Reads `pattern` if it stands here, and returns what was read; else reads nothing and returns `None`."""
        at = self.skip()
        if isinstance(pattern, str):
            found = pattern if self.text.startswith(pattern, at) else None
        else:
            match = pattern.match(self.text, at)
            found = match and match.group()
        self.at += len(found or "")
        return found

    def expect(self, mark: str, where: str) -> None:
        if not self.take(mark):
            self.fail(f"expected {where}")

    def fail(self, message: str, at: int | None = None, cause: BaseException | None = None) -> NoReturn:
        at = self.skip() if at is None else at
        raise errors.NotationError(message, self.text, min(at, len(self.text.rstrip()))) from cause

    def made(self, at: int, name: str, make: Callable[[], _T]) -> _T:
        """Calls a constructor; an error that it raises becomes a `NotationError` at the position `at`."""
        try:
            return make()
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            words = str(error)
            self.fail(words if words.startswith(name) else f"{name}: {words}", at, error)

    # -- rules of the grammar, each named as there ---------------------------------------------------------------

    def whole(self) -> Member:
        op = self.program()
        if self.skip() < len(self.text):
            self.fail("expected `|`, `;` or the end here" + self._on_commas())
        return op

    def program(self) -> Member:
        outer, names, flows = dict(self.names), [], []
        while name := self.take(_NAMED):
            at = self.at - len(name)
            if name in BY_WORD or name == "LLM":
                self.fail(f"`{name}` is a construct; give the flow another name", at)
            if name in names:
                self.fail(f"`{name}` is named already; give the flow another name", at)
            self.expect("=", "`=`")
            flows.append(self.one(self.skip(), self.flow()))
            names.append(name)
            self.expect(";", "`|`, or `;` and then the result, or another flow" + self._on_commas())
            self.names[name] = at
            self.unread.add(at)
        result = self.one(self.skip(), self.flow())
        self.take(";")
        for name in names:
            if self.names[name] in self.unread:
                self.fail(f"nothing uses `{name}`", self.names[name])
        self.names = outer
        return Flow(tuple(names), tuple(flows), result) if names else result

    def _on_commas(self) -> str:
        return (
            "; several flows stand side by side in brackets, `[… | M, …]`"
            if self.text.startswith(",", self.skip())
            else ""
        )

    def flow(self, in_list: bool = False) -> Any:
        """Reads a flow. Several operators side by side are returned as a list. Inside a list (`in_list`) a comma ends
        the flow, since it separates the list's members."""
        at = self.skip()
        found = self.asked()
        if not in_list and self.take(","):
            found = [self.one(at, found), self.one(self.skip(), self.operand())]
            while self.take(","):
                found.append(self.one(self.skip(), self.operand()))
        steps: list[Any] = [found]  # of a chain
        while self.take("|"):
            start = self.skip()
            count, construct = self.head()
            if construct and construct.before:
                steps = [self.construct(start, count, construct, self.chain(at, steps))]
            else:
                self.at = start
                steps.append(self.step(start, steps[-1]))
        return self.chain(at, steps)

    def chain(self, at: int, steps: list[Any]) -> Any:
        """The steps of a chain as one operator; a single step is returned as it is."""
        if len(steps) > 1:
            return self.made(at, "Chain", lambda: Chain(*[[self.one(at, step)] for step in steps]))
        if isinstance(steps[0], str):
            self.fail("a template is the step of a chain: `… | sim/small` asks a model with its words", at)
        return steps[0]

    def step(self, at: int, before: Any) -> Any:
        found = self.asked()
        if isinstance(before, Ensemble | list) and isinstance(found, LLM | Ensemble | list):
            self.fail("several answers stand before `|`; make one of them first, as `M` does", at)
        if isinstance(found, Reference):
            self.fail(f"`{found.name}` has answered; after `|` stands what is asked, or a construct", at)
        return found

    def asked(self) -> Any:
        """Reads an operand or a template."""
        at = self.skip()
        if not self.text.startswith('"', at):
            return self.operand()
        words = self.json()
        # A chain of this step alone is made and dropped, so that a string that is no template is an error at this
        # place.
        self.made(at, "Chain", lambda: Chain(words))
        return words

    def one(self, at: int, found: Any) -> Any:
        """What was read as one operator: several side by side become an `Ensemble`."""
        return self.made(at, "Ensemble", lambda: Ensemble(found)) if isinstance(found, list) else found

    def operand(self) -> Any:
        at = self.skip()
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail(f"this is nested more than {_DEEPEST} deep")
        found = self._operand(at)
        self.depth -= 1
        return found

    def _operand(self, at: int) -> Any:
        if self.take("("):
            program = self.program()
            self.expect(")", "`|`, `;` or `)`")
            return program
        if self.take("["):
            flows = [self.one(self.skip(), self.flow(in_list=True))]
            while self.take(","):
                flows.append(self.one(self.skip(), self.flow(in_list=True)))
            self.expect("]", "`|`, `,` or `]`")
            return flows
        if self.take("$"):
            return self.component(at)
        if self.take(_OLDER):
            self.fail("this is an older notation; for `3:E:gpt-4o:0.7` write `3E@openai/gpt-4o(temperature=0.7)`", at)
        if model := self.take(MODEL):
            return self.model(at, model)
        if self.take(_LLM):
            return self.model(at)
        count, construct = self.head()
        if construct is not None:
            return self.construct(at, count, construct)
        return self.reference(at)

    def head(self) -> tuple[int | None, Construct | None]:
        """The count and the construct that stand here, if a construct does; else nothing is read."""
        at = self.skip()
        count, word = self.take(_COUNT), self.take(_WORD)
        if word is None or word not in BY_WORD:
            self.at = at
            return None, None
        return (None if count is None else int(count)), BY_WORD[word]

    def reference(self, at: int) -> Reference:
        word = self.take(_WORD) or ""
        if word in self.names:
            self.unread.discard(self.names[word])
            return Reference(word)
        self.at = at
        unknown = self.take(_UNKNOWN)
        if not unknown:
            self.fail(f"expected {_OPERAND}")
        near = _close(_WORD_OF.sub("", unknown), [*self.names, *BY_WORD])
        self.fail(f"`{unknown}` is no model (`provider/model`), no construct, and no flow named before{near}", at)

    def component(self, at: int) -> Member:
        name = self.take(_WORD)
        if name is None:
            self.fail("expected the name of a component after `$`", at + 1)
        if name not in self.components:
            near = _close(name, self.components)
            self.fail(f"there is no component `{name}`; pass it as `parse(…, {name}=…)`{near}", at)
        self.used.add(name)
        return self.components[name]

    def model(self, at: int, name: Any = None) -> LLM:
        settings = self.settings()
        if name is None:
            given = [setting for setting in settings if setting.name == "model"]
            if not given:
                self.fail('LLM needs its model, as in `LLM(model="sim/small")`', at)
            at, name = given[0].at, given[0].value
            settings.remove(given[0])
        llm = self.made(at, str(name), lambda: LLM(name))
        for setting in settings:
            if setting.name == "model":
                self.fail("the model stands before the parentheses", setting.at)
            llm = self.made(setting.at, str(name), lambda llm=llm, s=setting: llm.replace(**{s.name: s.value}))
        return llm

    def construct(self, at: int, count: int | None, construct: Construct, before: Any = None) -> Member:
        word = construct.cls.__name__
        given: dict[str, Any] = {}
        for setting in self.settings():
            if setting.name not in construct.settings:
                near = _close(setting.name, construct.settings)
                takes = f"it takes {', '.join(construct.settings) or 'none'}"
                self.fail(f"{word} has no setting `{setting.name}`; {takes}{near}", setting.at)
            given[setting.name] = setting.value
        if construct.after and self.take("@"):
            given[construct.after] = self.asked() if construct.cls is Chain else self.operand()
        elif construct.needs_after:
            self.fail(f"expected `@` and the {construct.after} of {word}")
        if construct.before:
            if before is None:
                self.fail(
                    f"{word} needs its {construct.before} before `|`, as in `5E@sim/small | {construct.word}`", at
                )
            given[construct.before] = before
        if construct.count and count is not None:
            given[construct.count] = count
        op = self.made(at, word, lambda: construct.make(given))
        return op if construct.count or count in (None, 1) else self._several(at, count, construct, op, given)

    def _several(self, at: int, count: int, construct: Construct, op: Any, given: dict[str, Any]) -> Member:
        """`count` samples of a construct, all over the same candidates.

        The candidates are asked once: they become a named flow, unless they are a name already, and each sample of the
        construct refers to it. The name is one that the text does not use for another flow.
        """
        if not construct.after or construct.before != "members" or not isinstance(op.members, Ensemble):
            self.fail(f"{construct.cls.__name__} takes no count; several of a network are `{count}E@(…)`", at)
        before = self.one(at, given["members"])
        name = "candidates"
        while name in self.names:
            name += "_"
        shared = before if isinstance(before, Reference) else Reference(name)
        once = construct.make({**given, "members": shared})
        several = self.made(at, construct.cls.__name__, lambda: Ensemble(once, count))
        return several if shared is before else Flow((name,), (before,), several)

    def settings(self) -> list[_Setting]:
        found: list[_Setting] = []
        if not self.take("(") or self.take(")"):
            return found
        while True:
            at = self.skip()
            name = self.take(_WORD)
            if name is None:
                self.fail("expected a setting, as in `temperature=0.7`")
            if name in [setting.name for setting in found]:
                self.fail(f"`{name}` is given twice", at)
            self.expect("=", f"`=` and the value of {name}")
            found.append(_Setting(at, name, self.json()))
            if not self.take(","):
                self.expect(")", "`,` or `)`")
                return found

    def json(self) -> Any:
        at = self.skip()
        # Checked here, because Python's own limit for nested JSON differs from release to release.
        if _is_deep(self.text, at):
            self.fail(f"a value is nested more than {_DEEPEST} deep", at)
        try:
            value, self.at = _JSON.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            what = "a value: a number, true, false, null, a string in double quotes, or other JSON"
            self.fail(f"expected {what}" if error.pos == at else f"this is not JSON: {error.msg}", error.pos, error)
        except ValueError as error:  # Python refuses to convert an integer of thousands of digits
            self.fail(f"this value cannot be read: {error}", at, error)
        return value


def _is_deep(text: str, at: int) -> bool:
    """Whether the JSON value that begins at `at` is nested deeper than `_DEEPEST`."""
    depth = 0
    for found in _BRACKET.finditer(text, at) if text[at : at + 1] in ("[", "{") else ():
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if not 0 < depth <= _DEEPEST:
            return depth > 0
    return False


def _close(word: str, known: Iterable[str]) -> str:
    """A suggestion for an error message: the known words that differ in case alone, or else similar ones."""
    known = list(known)
    found = [name for name in known if name.lower() == word.lower()] or difflib.get_close_matches(word, known, n=3)
    return f". Did you mean {' or '.join(f'`{name}`' for name in found)}?" if found else ""
