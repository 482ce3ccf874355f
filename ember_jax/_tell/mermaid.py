"""A plan as a Mermaid flowchart, for notebooks and pages."""

from collections.abc import Iterator

from .._plan import ir
from .order import order
from .show import Models, ends, more, what

_SHAPES = {ir.Call: ("[[", "]]"), ir.Foreign: ("[[", "]]"), ir.Segment: ("(", ")"), ir.Words: ("[/", "/]")}
# Characters that mean something to Mermaid, or to the HTML that it makes, even in quotes.
_ESCAPED = {ord(c): f"#{ord(c)};" for c in '"#&<>`\\'} | {ord(c): " " for c in "\n\r\t"}


def mermaid(plan: ir.Plan, models: Models) -> str:
    """A flowchart: calls in double boxes, text in slanted, numbers in round ones.

    Arrows are what is waited for, dotted ones what a step starts without and takes later.
    """
    return "\n".join(["flowchart TD", *_lines(plan, "s", "  ", models)])


def _lines(plan: ir.Plan, prefix: str, margin: str, models: Models) -> Iterator[str]:
    head, hidden, tail = ends(order(plan))
    name = {index: f"{prefix}{index}" for index in (*head, *tail)}
    for index in head:
        yield from _node(plan.nodes[index], name[index], margin, models)
    if hidden:
        name.update(dict.fromkeys(hidden, f"{prefix}more"))
        yield f'{margin}{prefix}more["… {more(plan, hidden)}"]'
    for index in tail:
        yield from _node(plan.nodes[index], name[index], margin, models)
    for arrow, ends_of in (("-->", enumerate(plan.followers)), ("-.->", plan.takers.items())):
        pairs = dict.fromkeys((name[i], name[end]) for i, found in ends_of for end in found)
        yield from (f"{margin}{a} {arrow} {b}" for a, b in pairs if a != b)


def _node(node: ir.Node, name: str, margin: str, models: Models) -> Iterator[str]:
    title = _escaped(what(node, models)) + (f"<br/>{_escaped(node.scope)}" if node.scope else "")
    if not node.holds:
        left, right = _SHAPES.get(type(node), ("[", "]"))
        yield f'{margin}{name}{left}"{title}"{right}'
        return
    yield f'{margin}subgraph {name}["{title}"]'
    for place, held in enumerate(node.held):
        yield f'{margin}  subgraph {name}_{place}["{_escaped(held.role)}:"]'
        lines = list(_lines(held.plan, f"{name}_{place}_", margin + "    ", models))
        yield from lines or [f'{margin}    {name}_{place}_none("nothing to do")']
        yield f"{margin}  end"
    yield f"{margin}end"


def _escaped(words: str) -> str:
    return words.translate(_ESCAPED)
