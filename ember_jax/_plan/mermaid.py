"""A plan as a Mermaid flowchart, for notebooks and pages."""

from collections.abc import Iterator

from . import ir
from .show import labelled, order, what

_SHAPES = {ir.Call: ("[[", "]]"), ir.Foreign: ("[[", "]]"), ir.Segment: ("(", ")"), ir.Words: ("[/", "/]")}


def mermaid(plan: ir.Plan) -> str:
    """A flowchart: calls in double boxes, text in slanted, numbers in round ones; arrows are what is waited for."""
    return "\n".join(["flowchart TD", *_lines(plan, "s", "  ")])


def _lines(plan: ir.Plan, prefix: str, margin: str) -> Iterator[str]:
    for index in order(plan):
        node, name = plan.nodes[index], f"{prefix}{index}"
        inner = labelled(node)
        if inner:
            yield f'{margin}subgraph {name}["{_escaped(what(node))}"]'
            for place, (label, body) in enumerate(inner):
                yield f'{margin}  subgraph {name}_{place}["{_escaped(label)}"]'
                lines = list(_lines(body, f"{name}_{place}_", margin + "    "))
                yield from lines or [f'{margin}    {name}_{place}_none("nothing to do")']
                yield f"{margin}  end"
            yield f"{margin}end"
        else:
            left, right = _SHAPES.get(type(node), ("[", "]"))
            scope = f"<br/>{node.scope}" if node.scope else ""
            yield f'{margin}{name}{left}"{_escaped(what(node))}{_escaped(scope)}"{right}'
    for index, followers in enumerate(plan.followers):
        for follower in followers:
            yield f"{margin}{prefix}{index} --> {prefix}{follower}"


def _escaped(words: str) -> str:
    return words.replace('"', "#quot;")
