"""Answers that are used several times.

Design note. Constructs give each member a key of its own, so an operator that stands in two places asks twice. What is
to be asked once has a name in a `Flow`: its answers are put, as constants, where the name stands.
"""

from collections.abc import Mapping
from typing import TypeVar

import equinox as eqx
import jax

from .. import Key, Operator, Text
from ._members import Member, ask, for_role, given

_T = TypeVar("_T")


class Reference(Operator):
    """A member that stands for the answers of a named flow."""

    name: str = eqx.field(static=True)

    def forward(self, question: Text) -> Text["..."]:
        raise ValueError(f"`{self.name}` stands for answers in the network that names them; call that network.")


class _Given(Operator):
    """A member whose answers are there already."""

    answers: Text

    def forward(self, question: Text) -> Text["..."]:
        return self.answers


class Flow(Operator):
    """Named flows, each asked once, and what is made of them.

    **Arguments:**

    - `names`, `flows`: a flow may hold a `Reference` to each name before its own.
    - `result`: what is returned; it may refer to all of them.

    A flow has the key that is folded from its name, `result` the network's own. A flow inside another one sees the
    outer names but for those that it gives itself.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    flows: tuple[Member, ...]
    result: Member

    def forward(self, question: Text, key: Key | None = None) -> Text["..."]:
        known: dict[str, Member] = {}
        for name, flow in zip(self.names, self.flows, strict=True):
            known[name] = _Given(ask(_resolved(flow, known), question, key=for_role(key, name)))
        return ask(_resolved(self.result, known), question, key=given(key))

    def resolved(self, known: Mapping[str, Member]) -> "Flow":
        """The flow with what is known put in the place of its references to outer names."""
        outer = dict(known)
        flows = []
        for name, flow in zip(self.names, self.flows, strict=True):
            flows.append(_resolved(flow, outer))
            outer.pop(name, None)
        return Flow(self.names, tuple(flows), _resolved(self.result, outer))


def _resolved(member: _T, known: Mapping[str, Member]) -> _T:
    """A member with what is known put in the place of its references."""

    def put(node: Member) -> Member:
        if isinstance(node, Flow):
            return node.resolved(known)
        return known.get(node.name, node) if isinstance(node, Reference) else node

    return jax.tree.map(put, member, is_leaf=lambda node: isinstance(node, Flow | Reference))
