"""One of several members, picked by the question."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

import ember_jax  # whose `learn` is imported when it is first asked for

from .. import LLM, Key, Operator, Text
from ._members import Member, Members, answer_of, as_member, as_members, ask, flag, for_each, for_role, shown

# A function of `(question)` or `(question, key)` that returns an integer, or logits `float[n]` for n members.
Rule = Callable[..., Any]


class Router(Operator):
    """Asks the member that a rule picks for the question, and no other.

    ```python
    members = [ember.LLM("sim/small"), ember.LLM("sim/large")]
    op = non.Router(members, rule=non.LinearRule(len(members), dim=256), sampled=True)
    ```

    **Arguments:**

    - `members`: operators or LLMs, at least one.
    - `rule`: any operator or function of `(question)` or `(question, key)`. It returns the number of a member, an
        integer from 0, and one out of range counts as the nearest; or it returns logits, `float[n]` for n members. A
        module with weights, such as a `LinearRule`, can be learned.
    - `sampled`: whether the member is drawn from the logits, by `ember.learn.sample`, so that the rule can be learned.
        If not, the member with the largest logit is asked, the first among equals.

    **Raises:** `ValueError` without members; `TypeError` for a rule that cannot be called with a question or is an LLM;
    and when it is called, `TypeError` for a rule that returns something else, or an integer although `sampled`, and for
    a member that gives several answers.
    """

    members: tuple[Member, ...]
    rule: Rule
    sampled: bool = eqx.field(static=True)

    def __init__(self, members: Members, rule: Rule, sampled: bool = False):
        self.members = as_members(members, "Router", "members")
        if isinstance(rule, LLM):
            raise TypeError(
                "Router(rule=LLM(…)): a rule picks by a number, and an LLM answers with words. Let it choose: `lambda "
                'question, key: llm.decide(question, ember.Options("Who knows it best?", [first, second]), key).index`.'
            )
        self.rule = as_member(rule, "Router", "rule")
        self.sampled = flag(sampled, "Router", "sampled")

    def forward(self, question: Text, key: Key | None = None) -> Text:
        keys = for_each(key, len(self.members))
        branches = [
            lambda i=i, member=member: answer_of(member, question, keys[i], f"Router.members[{i}]")
            for i, member in enumerate(self.members)
        ]
        return jax.lax.switch(self.pick(question, key), branches)

    def pick(self, question: Text, key: Key | None = None) -> Int[Array, ""]:
        """The number of the member that is asked: an int32 from 0 to n - 1."""
        n = len(self.members)
        found = ask(self.rule, question, key=for_role(key, "rule"))
        if eqx.is_array_like(found):
            picked = jnp.asarray(found)
            if picked.shape == () and jnp.issubdtype(picked.dtype, jnp.integer) and not self.sampled:
                return jnp.clip(picked, 0, n - 1)
            if picked.shape == (n,) and jnp.issubdtype(picked.dtype, jnp.floating):
                if self.sampled:
                    return ember_jax.learn.sample(picked, for_role(key, "draw"))
                return jnp.argmax(picked)
        gives = f"float logits of shape [{n}] to draw from" if self.sampled else f"an integer, or float logits of [{n}]"
        raise TypeError(f"Router.rule gives {gives}, for {n} members, and returned {shown(found)}.")
