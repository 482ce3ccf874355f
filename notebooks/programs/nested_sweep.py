"""A nested sweep: models x temperatures x questions x samples, as a data frame and a picture.

At temperature 0 the samples of a question are one, so they are paid once.
"""

import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ember_jax as ember

MODELS, TEMPERATURES, SAMPLES = ["sim/small", "sim/medium", "sim/large"], [0.0, 0.5, 1.0], 4
QUESTIONS = [f"What is {i} * 17 + 3?" for i in range(20)]
golds = ember.text([str(i * 17 + 3) for i in range(20)])


def ask(model, temperature, question, key):
    return ember.LLM(model, temperature=temperature)(question, key)


sweep = ask
for axis in (3, 2, 1, 0):  # the innermost axis first
    sweep = jax.vmap(sweep, [0 if i == axis else None for i in range(4)])

with ember.session() as run:
    keys = jax.random.split(jax.random.key(0), SAMPLES)
    answers = ember.jit(sweep)(ember.text(MODELS), np.array(TEMPERATURES), ember.text(QUESTIONS), keys)
right = answers == golds.reshape(-1, 1)
assert answers.shape == (3, 3, 20, 4)

results = {"answer": answers, "right": right}
axes = {"model": MODELS, "temperature": TEMPERATURES, "question": QUESTIONS, "sample": SAMPLES}
frame = pd.DataFrame(ember.table(results, **axes))
accuracy = frame.groupby(["model", "temperature"], sort=False)["right"].mean().unstack()
with tempfile.TemporaryDirectory() as folder:
    accuracy.T.plot(marker="o", ylabel="accuracy")
    plt.savefig(Path(folder) / "sweep.png")
    assert (Path(folder) / "sweep.png").read_bytes().startswith(b"\x89PNG")

np.testing.assert_allclose(accuracy, np.mean(right, (2, 3)), rtol=1e-6)
assert (frame["right"] == (frame["answer"] == np.tile(np.repeat(golds.tolist(), SAMPLES), 9))).all()
report = run.report()
assert (report.calls, report.requests, report.merged) == (720, 3 * 20 * (1 + 4 + 4), 180), report
print(accuracy, report, sep="\n")
