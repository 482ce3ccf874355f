"""Reads networks in the compact notation; its grammar stands in `_notation.py`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .. import LLM
from ._chain import Chain
from ._cursor import DEEPEST, Cursor
from ._ensemble import Ensemble
from ._members import Member
from ._named import Flow, Reference
from ._notation import BY_WORD, MODEL, Construct

_COUNT = re.compile(r"[0-9]{1,9}")
_LLM = re.compile(r"LLM\b")
_WORD = re.compile(r"[^\W\d]\w*")
_NAMED = re.compile(r"[^\W\d]\w*(?=\s*=)")
_OLDER = re.compile(r"[0-9]+:[A-Z]+\b")  # the notation of the Ember before this one: "3:E:gpt-4o:0.7"
_WORD_OF = re.compile(r"^[0-9]+|@.*")  # the parts of `5e@sim/small` that do not belong to the word `e`
_UNKNOWN = re.compile(r"[\w.:@+/-]+")  # characters that a user may have meant as a model id, for an error to quote

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
    """Reads a text by recursive descent: a method for each rule of the grammar that may name a flow or a component.

    **Attributes:**

    - `reader`: the text, and how far it is read.
    - `components`: the operators that `$name` stands for; `used` are the names of those that it stood for.
    - `names`: for each flow that may be named here, where it is defined; `unread` are those that nothing names yet.
    - `depth`: how many operands the parser is inside of.
    """

    def __init__(self, text: str, components: dict[str, Member]):
        self.reader = Cursor(text)
        self.components = components
        self.used: set[str] = set()
        self.names: dict[str, int] = {}
        self.unread: set[int] = set()
        self.depth = 0

    def whole(self) -> Member:
        op = self.program()
        if self.reader.skip() < len(self.reader.text):
            self.reader.fail("expected `|`, `;` or the end here" + self.reader.on_commas())
        return op

    def program(self) -> Member:
        outer, names, flows = dict(self.names), [], []
        while name := self.reader.take(_NAMED):
            at = self.reader.at - len(name)
            if name in BY_WORD or name == "LLM":
                self.reader.fail(f"`{name}` is a construct; give the flow another name", at)
            if name in names:
                self.reader.fail(f"`{name}` is named already; give the flow another name", at)
            self.reader.expect("=", "`=`")
            flows.append(_one(self.reader, self.reader.skip(), self.flow()))
            names.append(name)
            self.reader.expect(";", "`|`, or `;` and then the result, or another flow" + self.reader.on_commas())
            self.names[name] = at
            self.unread.add(at)
        result = _one(self.reader, self.reader.skip(), self.flow())
        self.reader.take(";")
        for name in names:
            if self.names[name] in self.unread:
                self.reader.fail(f"nothing uses `{name}`", self.names[name])
        self.names = outer
        return Flow(tuple(names), tuple(flows), result) if names else result

    def flow(self, in_list: bool = False) -> Any:
        """Reads a flow. Several operators side by side are returned as a list. Inside a list (`in_list`) a comma ends
        the flow, since it separates the list's members."""
        at = self.reader.skip()
        found = self.asked()
        if not in_list and self.reader.take(","):
            found = [_one(self.reader, at, found), _one(self.reader, self.reader.skip(), self.operand())]
            while self.reader.take(","):
                found.append(_one(self.reader, self.reader.skip(), self.operand()))
        steps: list[Any] = [found]  # of a chain
        while self.reader.take("|"):
            start = self.reader.skip()
            count, construct = self.head()
            if construct and construct.before:
                steps = [self.construct(start, count, construct, _chain(self.reader, at, steps))]
            else:
                self.reader.at = start
                steps.append(self.step(start, steps[-1]))
        return _chain(self.reader, at, steps)

    def step(self, at: int, before: Any) -> Any:
        found = self.asked()
        if isinstance(before, Ensemble | list) and isinstance(found, LLM | Ensemble | list):
            self.reader.fail("several answers stand before `|`; make one of them first, as `M` does", at)
        if isinstance(found, Reference):
            self.reader.fail(f"`{found.name}` has answered; after `|` stands what is asked, or a construct", at)
        return found

    def asked(self) -> Any:
        """Reads an operand or a template."""
        at = self.reader.skip()
        if not self.reader.text.startswith('"', at):
            return self.operand()
        words = self.reader.json()
        # A chain of this step alone is made and dropped, so that a string that is no template is an error at this
        # place.
        self.reader.made(at, "Chain", lambda: Chain(words))
        return words

    def operand(self) -> Any:
        at = self.reader.skip()
        self.depth += 1
        if self.depth > DEEPEST:
            self.reader.fail(f"this is nested more than {DEEPEST} deep")
        found = self._operand(at)
        self.depth -= 1
        return found

    def _operand(self, at: int) -> Any:
        if self.reader.take("("):
            program = self.program()
            self.reader.expect(")", "`|`, `;` or `)`")
            return program
        if self.reader.take("["):
            flows = [_one(self.reader, self.reader.skip(), self.flow(in_list=True))]
            while self.reader.take(","):
                flows.append(_one(self.reader, self.reader.skip(), self.flow(in_list=True)))
            self.reader.expect("]", "`|`, `,` or `]`")
            return flows
        if self.reader.take("$"):
            return self.component(at)
        if self.reader.take(_OLDER):
            newer = "for `3:E:gpt-4o:0.7` write `3E@openai/gpt-4o(temperature=0.7)`"
            self.reader.fail(f"this is an older notation; {newer}", at)
        if model := self.reader.take(MODEL):
            return _model(self.reader, at, model)
        if self.reader.take(_LLM):
            return _model(self.reader, at)
        count, construct = self.head()
        if construct is not None:
            return self.construct(at, count, construct)
        return self.reference(at)

    def head(self) -> tuple[int | None, Construct | None]:
        """The count and the construct that stand here, if a construct does; else nothing is read."""
        at = self.reader.skip()
        count, word = self.reader.take(_COUNT), self.reader.take(_WORD)
        if word is None or word not in BY_WORD:
            self.reader.at = at
            return None, None
        return (None if count is None else int(count)), BY_WORD[word]

    def reference(self, at: int) -> Reference:
        word = self.reader.take(_WORD) or ""
        if word in self.names:
            self.unread.discard(self.names[word])
            return Reference(word)
        self.reader.at = at
        unknown = self.reader.take(_UNKNOWN)
        if not unknown:
            self.reader.fail(f"expected {_OPERAND}")
        near = _close(_WORD_OF.sub("", unknown), [*self.names, *BY_WORD])
        self.reader.fail(
            f"`{unknown}` is no model (`provider/model`), no construct, and no flow named before{near}", at
        )

    def component(self, at: int) -> Member:
        name = self.reader.take(_WORD)
        if name is None:
            self.reader.fail("expected the name of a component after `$`", at + 1)
        if name not in self.components:
            near = _close(name, self.components)
            self.reader.fail(f"there is no component `{name}`; pass it as `parse(…, {name}=…)`{near}", at)
        self.used.add(name)
        return self.components[name]

    def construct(self, at: int, count: int | None, construct: Construct, before: Any = None) -> Member:
        word = construct.cls.__name__
        given: dict[str, Any] = {}
        for setting in _settings(self.reader):
            if setting.name not in construct.settings:
                near = _close(setting.name, construct.settings)
                takes = f"it takes {', '.join(construct.settings) or 'none'}"
                self.reader.fail(f"{word} has no setting `{setting.name}`; {takes}{near}", setting.at)
            given[setting.name] = setting.value
        if construct.after and self.reader.take("@"):
            given[construct.after] = self.asked() if construct.cls is Chain else self.operand()
        elif construct.needs_after:
            self.reader.fail(f"expected `@` and the {construct.after} of {word}")
        if construct.before:
            if before is None:
                self.reader.fail(
                    f"{word} needs its {construct.before} before `|`, as in `5E@sim/small | {construct.word}`", at
                )
            given[construct.before] = before
        if construct.count and count is not None:
            given[construct.count] = count
        op = self.reader.made(at, word, lambda: construct.make(given))
        return op if construct.count or count in (None, 1) else self._several(at, count, construct, op, given)

    def _several(self, at: int, count: int, construct: Construct, op: Any, given: dict[str, Any]) -> Member:
        """`count` samples of a construct, all over the same candidates.

        The candidates are asked once: they become a named flow, unless they are a name already, and each sample of the
        construct refers to it. The name is one that the text does not use for another flow.
        """
        if not construct.after or construct.before != "members" or not isinstance(op.members, Ensemble):
            self.reader.fail(f"{construct.cls.__name__} takes no count; several of a network are `{count}E@(…)`", at)
        before = _one(self.reader, at, given["members"])
        name = "candidates"
        while name in self.names:
            name += "_"
        shared = before if isinstance(before, Reference) else Reference(name)
        once = construct.make({**given, "members": shared})
        several = self.reader.made(at, construct.cls.__name__, lambda: Ensemble(once, count))
        return several if shared is before else Flow((name,), (before,), several)


def _chain(reader: Cursor, at: int, steps: list[Any]) -> Any:
    """The steps of a chain as one operator; a single step is returned as it is."""
    if len(steps) > 1:
        return reader.made(at, "Chain", lambda: Chain(*[[_one(reader, at, step)] for step in steps]))
    if isinstance(steps[0], str):
        reader.fail("a template is the step of a chain: `… | sim/small` asks a model with its words", at)
    return steps[0]


def _one(reader: Cursor, at: int, found: Any) -> Any:
    """What was read as one operator: several side by side become an `Ensemble`."""
    return reader.made(at, "Ensemble", lambda: Ensemble(found)) if isinstance(found, list) else found


def _model(reader: Cursor, at: int, name: Any = None) -> LLM:
    settings = _settings(reader)
    if name is None:
        given = [setting for setting in settings if setting.name == "model"]
        if not given:
            reader.fail('LLM needs its model, as in `LLM(model="sim/small")`', at)
        at, name = given[0].at, given[0].value
        settings.remove(given[0])
    llm = reader.made(at, str(name), lambda: LLM(name))
    for setting in settings:
        if setting.name == "model":
            reader.fail("the model stands before the parentheses", setting.at)
        llm = reader.made(setting.at, str(name), lambda llm=llm, s=setting: llm.replace(**{s.name: s.value}))
    return llm


def _settings(reader: Cursor) -> list[_Setting]:
    found: list[_Setting] = []
    if not reader.take("(") or reader.take(")"):
        return found
    while True:
        at = reader.skip()
        name = reader.take(_WORD)
        if name is None:
            reader.fail("expected a setting, as in `temperature=0.7`")
        if name in [setting.name for setting in found]:
            reader.fail(f"`{name}` is given twice", at)
        reader.expect("=", f"`=` and the value of {name}")
        found.append(_Setting(at, name, reader.json()))
        if not reader.take(","):
            reader.expect(")", "`,` or `)`")
            return found


def _close(word: str, known: Iterable[str]) -> str:
    """A suggestion for an error message: the known words that differ in case alone, or else similar ones."""
    known = list(known)
    found = [name for name in known if name.lower() == word.lower()] or difflib.get_close_matches(word, known, n=3)
    return f". Did you mean {' or '.join(f'`{name}`' for name in found)}?" if found else ""
