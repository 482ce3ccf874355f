"""What a type checker says of programs: read by pyright, and not run. A complaint that is expected has to come."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Iterator
from typing import assert_type

import jax

import ember_jax as ember
from ember_jax import non

llm = ember.LLM("sim/small")
words = ember.text("What is 1 + 1?")


class Twice(ember.Operator):
    llm: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key | None = None) -> tuple[ember.Text, jax.Array]:
        return self.llm(question, key), question.length()


@ember.operator
def shout(answer: ember.Text) -> ember.Text:
    return answer + "!"


def first(question: ember.Text, n: int) -> ember.Text:
    return question[:n]


# An operator gives what its `forward` is annotated with; strings are taken for Text.
assert_type(Twice(llm)("What is 1 + 1?"), tuple[ember.Text, jax.Array])
assert_type(shout("2"), ember.Text)
assert_type(non.Vote(llm, n=3)("What is 1 + 1?"), ember.Text)
assert_type(ember.attempt(Twice(llm))("a"), tuple[tuple[ember.Text, jax.Array], jax.Array])

# What takes a function gives one of its arguments.
assert_type(ember.jit(first)(words, 2), ember.Text)
assert_type(ember.jit(first).lower(words, n=2), ember.Plan)
assert_type(ember.lower(first)(words, 2), ember.Plan)
assert_type(ember.metered(first)(words, 2), tuple[ember.Text, ember.Usage])
assert_type(ember.stream(first)(words, 2), Iterator[tuple[int, ember.Text]])
ember.jit(first)(words)  # pyright: ignore[reportCallIssue]
ember.attempt(first)(words, 2, 3)  # pyright: ignore[reportCallIssue]
ember.metered(first)(words, m=2)  # pyright: ignore[reportCallIssue]
ember.lower(first)(words, "2")  # pyright: ignore[reportArgumentType]

# A slip is a complaint too.
_ = ember.Voet  # pyright: ignore[reportAttributeAccessIssue]
_ = ember.providers.Antropic  # pyright: ignore[reportAttributeAccessIssue]
_ = non.Voet  # pyright: ignore[reportAttributeAccessIssue]
