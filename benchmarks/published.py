"""Claim: from twenty published samples of real models the votes of all of them are predicted within 2.5 points, and a
best number of calls that is said to be known loses less than 0.3 points.

The logs are those of others: clone their repositories and give the folders (without any it says from where, and ends).
Each draw takes twenty samples of every question at random. `scaling.fit` gets these alone, and predicts votes of more.
Measured is `scaling.plurality_at_k` of all samples. The baseline is what the twenty say by themselves: votes of samples
drawn from them again, with replacement.

An interval is about all questions that could be asked. So for these, each draw also takes the questions anew, as many
as there are and with replacement: then the mean over the data set is what the interval is to hold.

Prints for each data set and number of calls what was measured, predicted (mean over draws), and the errors in points
(root mean square); how often intervals of 95% held; and the best numbers of calls, how many are known, and what they
lose at most. Arguments: a folder for each repository, `--draws`.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hardware
import numpy as np
import report

from ember_jax.learn import scaling

SAMPLES, AT, MOST, TOLERANCE = 20, (19, 39, 99, 259), 101, 1e-3


class Logs(NamedTuple):
    """Samples of questions: `[questions, samples]`, and which are right."""

    name: str
    answers: np.ndarray
    right: np.ndarray


def game24(folder: Path) -> Iterator[Logs]:
    """Expressions by GPT-4, 100 for each puzzle. Several may be right; what is none is a word like others."""
    for style in ("cot", "standard"):
        rows = _json(folder / f"logs/game24/gpt-4_0.7_naive_{style}_sample_100_start900_end1000.json")
        expression = lambda text: re.sub(r"^answer:|=.*| ", "", text.strip().split("\n")[-1].lower())
        right = [[bool(i["r"]) for i in row["infos"]] if "infos" in row else row["accs"] for row in rows]
        yield Logs(f"Game of 24, {style}", _words([map(expression, row["ys"]) for row in rows]), np.array(right))


def dates(folder: Path) -> Iterator[Logs]:
    """Dates by GPT-3.5, from two prompts at three temperatures, as reasoning in words and as programs that were run."""
    found, golds = {}, []
    for name, short in (("words", "cot"), ("programs", "pot")):
        parts = []
        for prompt in (f"date_{short}1", f"date_{short}2"):
            more = folder / f"GPT3_result/{prompt}_40.json"  # it begins with the twenty of the file without a number
            first = more if more.exists() else folder / f"GPT3_result/{prompt}.json"
            for path in (first, *(folder / f"GPT3_result/{prompt}_t={t}.json" for t in (0.4, 0.8))):
                rows = _json(path)
                golds = [row["answer"] for row in rows]
                parts.append(_words([map(str, row["results"]) for row in rows]))
        found[name] = np.concatenate(parts, 1)
    found["both"] = np.concatenate(list(found.values()), 1)
    for name, answers in found.items():
        yield Logs(f"dates, {name}", answers, answers == np.array(golds, object)[:, None])


def letters(folder: Path) -> Iterator[Logs]:
    """Last letters of four words, by GPT-3.5, 40 samples."""
    rows = _lines(folder / "GPT3.5_result/last_letters/T0.7.jsonl")
    word = lambda text: re.sub("[^a-z]", "", text.lower().split("the answer is")[-1])
    answers = _words([map(word, row["generated_answer"]) for row in rows])
    yield Logs("last letters", answers, answers == np.array([row["answer"] for row in rows], object)[:, None])


def faithful(folder: Path) -> Iterator[Logs]:
    """Dates by Codex from least-to-most prompts, 40 samples."""
    rows = _lines(folder / "output_dir/date/test/code002_LtM_n:40/predictions.jsonl")
    golds = {row["id"]: row["answer"].removeprefix("#### ") for row in _lines(folder / "data/date/test.jsonl")}
    date = lambda text: text.split("answer is")[-1].strip(" .\n")
    answers = _words([map(date, row["completions"]) for row in rows])
    yield Logs("dates, Codex", answers, answers == np.array([golds[row["id"]] for row in rows], object)[:, None])


SOURCES: dict[str, tuple[str, Callable[[Path], Iterator[Logs]]]] = {
    "game24": ("https://github.com/princeton-nlp/tree-of-thought-llm", game24),
    "dates": ("https://github.com/MurongYue/LLM_MoT_cascade", dates),
    "letters": ("https://github.com/Yiwei98/ESC", letters),
    "faithful": ("https://github.com/veronica320/Faithful-COT", faithful),
}


def _json(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _words(rows: list[Any]) -> np.ndarray:
    return np.array([list(row) for row in rows], object)  # some are whole texts, which fixed widths would pad


def twenty(logs: Logs, questions: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Twenty samples of each of some questions, and which are right."""
    which = draw.permuted(np.tile(np.arange(logs.answers.shape[1]), (len(questions), 1)), axis=1)[:, :SAMPLES]
    return logs.answers[questions[:, None], which], logs.right[questions[:, None], which]


def resampled(answers: np.ndarray, right: np.ndarray, ks: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """How often votes of samples are right that are drawn from these again, with replacement; ties are shared."""
    found = np.zeros(len(ks))
    for given, is_right in zip(answers, right, strict=True):
        _, first, counts = np.unique(given, return_index=True, return_counts=True)
        votes = draw.multinomial(np.diff(ks, prepend=0)[:, None], counts / SAMPLES, (len(ks), 100)).cumsum(0)
        wins = votes == votes.max(-1, keepdims=True)
        found += (wins[..., is_right[first]].sum(-1) / wins.sum(-1)).mean(1)
    return found / len(answers)


def told(name: str, best: list[tuple[int, bool]], curve: np.ndarray, odd: np.ndarray) -> tuple[str, list[float]]:
    """What numbers of calls are said to be best, in words; and what those that are known lose, in points."""
    losses = [(100 * float(curve[odd - 1].max() - curve[k - 1]), known) for k, known in best]
    known = [loss for loss, is_known in losses if is_known]
    ks = sorted(k for k, _ in best)
    words = f"{ks[len(ks) // 2]} ({ks[0]} to {ks[-1]}), losing {max(loss for loss, _ in losses):.2f} at most"
    return f"  {name}: {words}; known {len(known)} of {len(best)}" + (
        f", losing {max(known):.2f} at most" if known else ""
    ), known


class Found(NamedTuple):
    """Of all draws: the errors of the law and of the baseline in points, whether intervals held, and losses."""

    errors: np.ndarray
    baselines: np.ndarray
    held: np.ndarray
    losses: list[float]


def measure(logs: Logs, draws: int) -> Found:
    """Fits the law to each draw, and prints what it says beside what was measured."""
    questions, samples = logs.answers.shape
    every = np.arange(questions)
    curve = np.asarray(
        scaling.plurality_at_k(logs.answers.tolist(), logs.right, np.arange(1, samples + 1), normalize=None), float
    ).mean(0)
    at = np.array([k for k in AT if k <= samples])
    odd = np.arange(1, min(samples, MOST) + 1, 2)
    ks = np.union1d(at, odd)
    predicted, plain, best, plain_best, best_anew, held = [], [], [], [], [], []
    for seed in range(draws):
        draw = np.random.default_rng(seed)
        some = twenty(logs, every, draw)
        model = scaling.fit(some[0].tolist(), some[1], normalize=None)
        predicted.append(np.asarray(model.accuracy(at), float))
        found = model.best_k(int(odd[-1]))
        best.append((found.k, found.is_known))
        again = resampled(*some, ks, draw)
        plain.append(again[np.searchsorted(ks, at)])
        of_odd = again[np.searchsorted(ks, odd)]
        plain_best.append((int(odd[np.argmax(of_odd >= of_odd.max() - TOLERANCE)]), False))

        answers, right = twenty(logs, draw.integers(questions, size=questions), draw)
        anew = scaling.fit(answers.tolist(), right, normalize=None)
        low, high = map(np.asarray, anew.interval(at))
        held.append((low <= curve[at - 1]) & (curve[at - 1] <= high))
        found = anew.best_k(int(odd[-1]))
        best_anew.append((found.k, found.is_known))
    print(f"{logs.name}: {questions} questions, {samples} samples of each")
    errors, baselines = (100 * (np.array(rows) - curve[at - 1]) for rows in (predicted, plain))
    for i, k in enumerate(at.tolist()):
        rms = [float(np.sqrt(np.mean(rows[:, i] ** 2))) for rows in (errors, baselines)]
        mean = [100 * float(np.mean([row[i] for row in rows])) for rows in (predicted, plain)]
        print(
            f"  {k:>3} calls: measured {100 * curve[k - 1]:5.2f}, predicted {mean[0]:5.2f}, error {rms[0]:4.2f}   "
            f"resampled {mean[1]:5.2f}, error {rms[1]:4.2f}   intervals held {sum(h[i] for h in held)} of {draws}"
        )
    print(f"  best measured: {odd[curve[odd - 1].argmax()]} calls, {100 * curve[odd - 1].max():.2f}")
    words, losses = told("best told", best, curve, odd)
    of_anew, more = told("with questions drawn anew", best_anew, curve, odd)
    print(words, of_anew, told("resampled", plain_best, curve, odd)[0].split("; known")[0], sep="\n", flush=True)
    return Found(errors, baselines, np.array(held), losses + more)


def main() -> None:
    parser = argparse.ArgumentParser(description="Votes of published samples, predicted from twenty of each question.")
    for name, (url, _) in SOURCES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"a clone of {url}")
    parser.add_argument("--draws", type=int, default=10, help="how many times twenty samples are drawn")
    given = parser.parse_args()
    folders = {name: folder for name in SOURCES if (folder := getattr(given, name)) is not None}
    if not folders:
        print("Nothing to read. Clone some of these, and give the folders:")
        for name, (url, _) in SOURCES.items():
            print(f"  git clone {url}   # --{name} FOLDER")
        return
    hardware.show()
    print(f"{SAMPLES} samples of each question, {given.draws} draws; accuracies and errors in points")
    found = [measure(logs, given.draws) for name, folder in folders.items() for logs in SOURCES[name][1](folder)]
    worst, plain = (
        max(float(np.sqrt(np.mean(rows**2, 0)).max()) for rows in kind)
        for kind in ([f.errors for f in found], [f.baselines for f in found])
    )
    report.row("real votes from 20 samples, largest rms error; by resampling", worst, plain, "points", "2.5")
    losses = [loss for f in found for loss in f.losses]
    if losses:
        report.row("what a best number of real votes that is known loses, at most", max(losses), None, "points", "0.3")
    held = np.concatenate([f.held.ravel() for f in found])
    print(f"all: largest error {worst:.2f}, resampled {plain:.2f}; intervals held {held.sum()} of {held.size}")


if __name__ == "__main__":
    main()
