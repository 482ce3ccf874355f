"""Named flows of the compact notation: answers that are used in several places.

Design note. Constructs give each member a key of its own, so an operator that stands in two places asks twice. An
operator that is to be asked once gets a name in a `Flow`. It is asked before anything that uses it, and wherever the
name stands, a member is put that returns its answers.
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


class _Known(Operator):
    """A member that returns answers which were asked for before."""

    answers: Text

    def forward(self, question: Text) -> Text["..."]:
        return self.answers


class Flow(Operator):
    """Named flows, each asked once, and a network that uses their answers.

    **Arguments:**

    - `names`, `flows`: the names and what each stands for. A flow may hold a `Reference` to each name before its own.
    - `result`: the network whose answer is returned. It may refer to all names.

    Each flow gets a key that is folded from its name, `result` the key of the whole. A `Flow` inside another one sees
    the outer names, except those that it defines itself.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    flows: tuple[Member, ...]
    result: Member

    def forward(self, question: Text, key: Key | None = None) -> Text["..."]:
        known: dict[str, Member] = {}
        for name, flow in zip(self.names, self.flows, strict=True):
            known[name] = _Known(ask(_resolved(flow, known), question, key=for_role(key, name)))
        return ask(_resolved(self.result, known), question, key=given(key))

    def resolved(self, known: Mapping[str, Member]) -> "Flow":
        """The flow with its references to outer names replaced by the members in `known`. A name that it defines itself
        hides the outer one, from the flow after it on."""
        outer = dict(known)
        flows = []
        for name, flow in zip(self.names, self.flows, strict=True):
            flows.append(_resolved(flow, outer))
            outer.pop(name, None)
        return Flow(self.names, tuple(flows), _resolved(self.result, outer))


def _resolved(member: _T, known: Mapping[str, Member]) -> _T:
    """A member with its references replaced by the members in `known`; references to other names stay."""

    def put(node: Member) -> Member:
        if isinstance(node, Flow):
            return node.resolved(known)
        return known.get(node.name, node) if isinstance(node, Reference) else node

    return jax.tree.map(put, member, is_leaf=lambda node: isinstance(node, Flow | Reference))
