"""Claim: twenty samples of each question predict votes of 19, 99 and 259 within 2.5 points, and a best number of calls
that is said to be known loses less than 0.3 points.

Simulated questions of known answer distributions: one wrong answer that competes, twenty different ones, and a heavy
tail. `scaling.fit` gets twenty samples of each; the truth is the mean over many votes of the same questions. The
baseline is what right and wrong alone say: curves of "Are More LLM Calls All You Need?" (arXiv 2403.02419), fitted to
votes in which all wrong answers agree. Prints the errors in points, root mean square over data sets, and of the numbers
of calls that are said to be best how many are known and what they lose. Arguments: questions, data sets.
"""

import sys

import hardware
import numpy as np
import report

from ember_jax.learn import scaling

SAMPLES, AT, MOST = 20, np.array([19, 99, 259]), 101
ONE, TWENTY = np.ones(1), np.full(20, 1 / 20)
HEAVY = np.arange(1, 101) ** -1.5 / (np.arange(1, 101) ** -1.5).sum()
FAMILIES = {
    "one competes, .85 and .35": (lambda draw, n: np.where(draw.random(n) < 0.6, 0.85, 0.35), ONE),
    "one competes, beta(5, 3)": (lambda draw, n: draw.beta(5, 3, n), ONE),
    "twenty, beta(1, 3)": (lambda draw, n: draw.beta(1, 3, n), TWENTY),
    "twenty, .85 and .35": (lambda draw, n: np.where(draw.random(n) < 0.6, 0.85, 0.35), TWENTY),
    "heavy tail, beta(2, 3)": (lambda draw, n: draw.beta(2, 3, n), HEAVY),
}


def truth(draw: np.random.Generator, shares: np.ndarray, ks: np.ndarray, votes: int) -> np.ndarray:
    """The accuracy of votes of so many, at questions whose right answer is the first: ties are shared."""
    counts = np.zeros((votes, *shares.shape), int)
    found, before = [], 0
    for k in ks.tolist():
        counts += draw.multinomial(k - before, shares, size=counts.shape[:2])
        before = k
        top = counts[..., 1:].max(-1)
        tied = (counts[..., 1:] == top[..., None]).sum(-1)
        found.append(np.where(counts[..., 0] > top, 1.0, np.where(counts[..., 0] == top, 1 / (tied + 1), 0.0)).mean())
    return np.array(found)


def main() -> None:
    hardware.show()
    given = [*map(int, sys.argv[1:]), 1000, 3]
    questions, sets = given[0], given[1] if len(sys.argv) > 2 else 3
    print(
        f"{questions:,} questions, {SAMPLES} samples of each, {sets} data sets; errors in points at {AT.tolist()} calls"
    )
    errors, baselines, losses = [], [], []
    for name, (skill, wrong) in FAMILIES.items():
        ours, plain, known = [], [], []
        for seed in range(sets):
            draw = np.random.default_rng([seed, questions])
            p = skill(draw, questions)
            shares = np.concatenate([p[:, None], (1 - p[:, None]) * wrong], 1)
            answers = (draw.random((questions, SAMPLES, 1)) > shares.cumsum(1)[:, None, :-1]).sum(-1)
            curve = np.unique([*AT, *range(1, MOST + 1, 2)])
            true = dict(zip(curve.tolist(), 100 * truth(draw, shares, curve, 60_000 // questions), strict=True))
            model = scaling.fit(answers, np.zeros(questions, int))
            at = [true[k] for k in AT.tolist()]
            ours.append(100 * np.asarray(model.accuracy(AT)) - at)
            right = (answers == 0).sum(1)
            points = np.array([1, 3, 5, 9, 19])
            alone = scaling.fit_curves(scaling.vote_at_k(SAMPLES, right[:, None], points), points.tolist())
            plain.append(100 * np.asarray(alone.accuracy(AT)) - at)
            best = model.best_k(MOST)
            if best.is_known:
                known.append(max(value for k, value in true.items() if k <= MOST) - true[best.k])
        rms = lambda rows: np.sqrt(np.mean(np.square(rows), 0))
        errors += ours
        baselines += plain
        losses += known
        told = f"known {len(known)} of {sets}" + (f", losing {max(known):.2f} at most" if known else "")
        shown = "  ".join(f"{error:5.2f}" for error in rms(ours))
        print(f"{name:<28} {shown}   right and wrong alone {'  '.join(f'{e:5.2f}' for e in rms(plain))}   {told}")
    all_ours, all_plain = (float(np.sqrt(np.mean(np.square(rows)))) for rows in (errors, baselines))
    report.row("votes predicted from 20 samples, rms error; from right and wrong", all_ours, all_plain, "points", "2.5")
    if losses:
        report.row("what a best number that is known loses, at most", max(losses), None, "points", "0.3")


if __name__ == "__main__":
    main()
