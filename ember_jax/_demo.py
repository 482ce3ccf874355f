"""The main job on simulated models: a network of small models that asks a large one only where it must."""

import sys
import time
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np

from ._llm import LLM
from ._lower import lower
from ._operator import Operator
from ._runtime.session import Report, session
from ._text.numbers import parse_number
from ._text.operations import format
from ._text.text import Text, text
from ._types import Key

_VERIFY = "{question}\nProposed answer: {answer}\nIs the proposed answer correct? Reply yes or no."
_SHOWN = 5


class Single(Operator):
    """One call of one model."""

    llm: LLM

    def forward(self, question: Text, key: Key) -> Text:
        return self.llm(question, key)


class Vote(Operator):
    """The most common of three samples."""

    llm: LLM

    def forward(self, question: Text, key: Key) -> Text:
        answers = jax.vmap(self.llm, in_axes=(None, 0))(question, jax.random.split(key, 3))
        return answers[jnp.argmax(jnp.sum(answers.reshape(3, 1) == answers, axis=1))]


class Network(Operator):
    """Small samples vote, a small model verifies; only what it doubts goes to the large model."""

    vote: Vote
    verifier: LLM
    large: LLM

    def forward(self, question: Text, key: Key) -> Text:
        answer = self.vote(question, key)
        verdict = self.verifier(format(_VERIFY, question=question, answer=answer))
        return jax.lax.cond(verdict == "yes", lambda: answer, lambda: self.large(question))


def demo(questions: int, seed: int, out: TextIO | None = None, trace: str | None = None) -> None:
    """Answers arithmetic questions with one small model, a vote, the network, and one large model.

    **Arguments:**

    - `questions`: how many.
    - `seed`: draws the questions and the samples.
    - `out`: where the answers, the plan, and calls, cost and accuracy are written; standard output by default.
    - `trace`: the file where the network's timeline is saved.
    """
    write = lambda *lines: print(*lines, sep="\n", file=out or sys.stdout, flush=True)
    asked, gold = _questions(questions, seed)
    keys = jax.random.split(jax.random.key(seed), questions)
    small, medium, large = LLM("sim/small"), LLM("sim/medium"), LLM("sim/large")
    network = Network(Vote(small), medium, large)
    operators = {"one small model": Single(small), "vote of three": Vote(small), "network": network}
    operators["one large model"] = Single(large)

    write(f"{questions} questions, simulated models.\n", str(lower(network)(asked[0], keys[0])), "")
    answers = Text(jnp.zeros((0, 4), jnp.uint32))
    rows = []
    for name, operator in operators.items():
        start = time.perf_counter()
        with session() as run:
            found = jax.vmap(operator)(asked, keys)
        correct = np.mean(np.asarray(parse_number(found)) == gold)
        rows.append(_row(name, float(correct), run.report(), time.perf_counter() - start))
        if operator is network:
            answers = found
            if trace is not None:
                run.trace.save(trace)

    write(*(f"{q}  {a}" for q, a in zip(asked[:_SHOWN].tolist(), answers[:_SHOWN].tolist(), strict=True)), "…\n")
    write(f"{'':<16} {'accuracy':>9} {'calls':>7} {'cost':>11} {'seconds':>8}", *rows)


def _row(name: str, accuracy: float, report: Report, seconds: float) -> str:
    return f"{name:<16} {accuracy:>9.1%} {report.calls:>7,} {f'${report.cost_usd:.6f}':>11} {seconds:>8.2f}"


def _questions(count: int, seed: int) -> tuple[Text, np.ndarray]:
    draw = np.random.default_rng(seed)
    numbers = draw.integers(10, 100, (count, 3)).tolist()
    asked = [f"What is {a} * {b} + {c}?" for a, b, c in numbers]
    return text(asked), np.array([a * b + c for a, b, c in numbers], np.float32)
