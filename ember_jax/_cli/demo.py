"""`python -m ember_jax demo`: what a network of simulated models is worth, and how many calls of a vote are best."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np

from .. import non
from .._evaluate import picture
from .._model.llm import LLM
from .._operator.lower import lower
from .._runtime.session import session
from .._text.text import Text, text
from ..learn import Frontier, pareto, scaling
from ..testing import Sim, SimModel

# How many questions are shown with their answers.
_SHOWN = 3
# The share of easy questions, and how often a model is right on an easy and on a hard question. With these numbers a
# vote first gets better with more calls, and then worse.
_EASY, _RIGHT_IF_EASY, _RIGHT_IF_HARD = 0.6, 0.85, 0.35
# How many samples of each question are drawn, and from how many of these the best number of calls is predicted.
_SAMPLES, _FEW = 41, 20

Write = Callable[..., None]


def demo(questions: int, seed: int, out: TextIO | None = None, folder: Path | None = None) -> None:
    """Answers arithmetic questions with networks of simulated models, and writes what they cost and are worth.

    **Arguments:**

    - `questions`: how many questions are asked.
    - `seed`: seeds the draws of the questions and of the samples.
    - `out`: where text is written; standard output by default.
    - `folder`: where pictures are written, if matplotlib is there: accuracy against cost, the timeline, and accuracy
        against the number of calls; by default nowhere.
    """
    write = lambda *lines: print(*lines, sep="\n", file=out or sys.stdout, flush=True)
    pictures = {} if folder is None else {name: folder / f"{name}.png" for name in ("frontier", "timeline", "votes")}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        _worth(questions, seed, write, pictures)
        _more_calls(questions, seed, write, pictures)
    except ImportError as error:  # without matplotlib
        write("", str(error))
    else:
        write(*([""] if pictures else []), *map(str, pictures.values()))


def _worth(questions: int, seed: int, write: Write, pictures: dict[str, Path]) -> None:
    """Evaluates single models, a vote and a network on the same questions."""
    draw = np.random.default_rng(seed)
    numbers = draw.integers(10, 100, (questions, 3)).tolist()
    data = [(f"What is {a} * {b} + {c}?", str(a * b + c)) for a, b, c in numbers]
    small, medium, large = LLM("sim/small"), LLM("sim/medium"), LLM("sim/large")
    vote = non.Vote(small, n=3)
    # Three small samples vote, a medium model checks them, and only what it doubts goes to the large one.
    network = non.Cascade([vote, large], scorer=non.Grader(medium, sampled=True))
    operators = {"one small model": small, "vote of three": vote, "network": network, "one large model": large}

    key = jax.random.key(seed)
    write(f"{questions} questions, simulated models. The plan of the network:\n")
    write(lower(network)(data[0][0], key).explain(), "")
    with session() as run:
        frontier: Frontier = pareto(operators, data, "number", key=key)
    answers = frontier.results["network"].answers
    write(*(f"{question}  {answer}" for (question, _), answer in zip(data[:_SHOWN], answers, strict=False)), "…\n")
    write(str(frontier), "", str(run.report()), "")
    if pictures:
        frontier.plot(pictures["frontier"])
        with picture.axes(pictures["timeline"], "the demo's timeline") as ax:
            run.trace.plot(ax)


def _more_calls(questions: int, seed: int, write: Write, pictures: dict[str, Path]) -> None:
    """Votes with more and more calls, on questions of which some are answered worse than by a coin.

    More calls then make a vote worse on these questions and better on the others. Chen et al., arXiv 2403.02419.
    """
    asked, gold, accuracy = _uneven(questions, seed)
    model = SimModel(accuracy=accuracy, wrong_answers=1, latency=0.02, sigma=0.3)
    with session(providers={"sim": Sim({"uneven": model})}):
        samples = non.Ensemble(LLM("sim/uneven"), n=_SAMPLES)
        answers = jax.vmap(samples)(asked, jax.random.split(jax.random.key(seed), questions))
    counts = np.arange(1, _SAMPLES + 1, 4)
    fitted = scaling.fit(answers[:, :_FEW], gold)
    shares, skills = np.array([_EASY, 1 - _EASY]), np.array([_RIGHT_IF_EASY, _RIGHT_IF_HARD])
    curves = {
        "measured": np.mean(_winners(answers, counts) == gold.reshape(-1, 1), axis=0),
        "exact law": np.asarray(scaling.mixture_accuracy(shares, skills, counts)),
        f"from {_FEW} samples": np.asarray(fitted.accuracy(counts)),
    }
    write("More calls are not always better: a vote of k calls, where some questions are hard.\n")
    write(f"{'calls':<16}" + "".join(f"{k:>7}" for k in counts.tolist()))
    write(*(f"{name:<16}" + "".join(f"{x:>7.1%}" for x in curve) for name, curve in curves.items()))
    write("", f"From {_FEW} samples of each question: {fitted.best_k(_SAMPLES)}.")
    if pictures:
        with picture.axes(pictures["votes"], "the demo's picture of votes") as ax:
            for (name, curve), style in zip(curves.items(), ("o", "-", "--"), strict=True):
                ax.plot(counts, curve, style, label=name)
            ax.set_xlabel("calls in a vote")
            ax.set_ylabel("accuracy")
            ax.legend()


@jax.jit
def _winners(answers: Text, counts: jax.Array) -> Text:
    """The winners of votes among the first `count` samples: a Text of shape `[questions, counts]`."""

    def winner(answers: Text, count: jax.Array) -> Text:
        counted = jnp.where(jnp.arange(len(answers)) < count, 1.0, 0.0)
        return answers[jnp.argmax(non.votes(answers, counted))]

    return jax.vmap(jax.vmap(winner, (None, 0)), (0, None))(answers, counts)


def _uneven(questions: int, seed: int) -> tuple[Text, Text, Callable[[str], float]]:
    """Questions, their right answers, and a function that says how often a model is right on one.

    Sums are easy, and products are hard.
    """
    draw = np.random.default_rng(seed)
    easy = np.arange(questions) < round(_EASY * questions)
    numbers = draw.integers(100, 1000, (questions, 2)).tolist()
    asked = [f"What is {a} {'+' if e else '*'} {b}?" for (a, b), e in zip(numbers, easy, strict=True)]
    gold = [str(a + b if e else a * b) for (a, b), e in zip(numbers, easy, strict=True)]
    return text(asked), text(gold), lambda prompt: _RIGHT_IF_EASY if "+" in prompt else _RIGHT_IF_HARD
