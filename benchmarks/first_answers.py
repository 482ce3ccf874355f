"""Claim: a network's first answers come soon: little is compiled before them.

A fresh process without a compilation cache answers 50 questions with a network of simulated models that answer at
once: the demo's cascade (a vote of three small models, a grader, a large model), or a debate of three in two rounds.
Prints seconds from the call of `jax.vmap(op)` to the first answer of a model and to the last one's return, the CPU
seconds of both, and how many programs XLA's backend compiled: in the first sweep, and in a second one of 40 questions.
The baseline is the same process with the calls made by hand in a loop over the same models: what importing, tracing and
compiling cost beside it. Arguments: `network` or `debate`, both without.
"""

import json
import subprocess
import sys
import time

import report

RUNS = 3


def once(what: str) -> None:
    """In a fresh process: prints seconds, CPU seconds and compilations as JSON."""
    import jax
    import jax.monitoring

    import ember_jax as ember
    from ember_jax import non

    compiled = 0

    def heard(name: str, *_: object, **__: object) -> None:
        nonlocal compiled
        compiled += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(heard)
    models = {
        name: ember.providers.SimModel(accuracy=a, latency=0.0)
        for name, a in (("small", 0.7), ("medium", 0.8), ("large", 0.95))
    }
    small, medium, large = (ember.LLM(f"sim/{name}", temperature=0.7) for name in models)
    if what == "network":
        op = non.Cascade([non.Vote(small, n=3), large], scorer=non.Grader(medium), thresholds=0.7)
    else:
        op = non.Debate([small, medium, large], judge=large, rounds=2)
    questions = ember.text([f"What is {i} * 17 + 3?" for i in range(90)])
    keys = jax.random.split(jax.random.key(0), 90)
    first = 0.0

    def saw(_: object) -> None:
        nonlocal first
        first = first or time.perf_counter()

    with ember.session(journal=None, providers={"sim": ember.providers.Sim(models)}, progress=False) as run:
        run.watchers.append(saw)
        before, cpu, had = time.perf_counter(), time.process_time(), compiled
        jax.block_until_ready(jax.vmap(op)(questions[:50], keys[:50]).digests)
        last, spent, made = time.perf_counter(), time.process_time() - cpu, compiled - had
        had, more, lesser = compiled, questions[50:], keys[50:]
        jax.block_until_ready(jax.vmap(op)(more, lesser).digests)
        again = compiled - had
    figures = {"first": first - before, "last": last - before, "cpu": spent, "compiled": made, "again": again}
    print(json.dumps(figures))


def main() -> None:
    import hardware

    hardware.show()
    for what in sys.argv[1:] or ("network", "debate"):
        runs = []
        for _ in range(RUNS):
            command = [sys.executable, "-W", "ignore", __file__, "--once", what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
        best = {name: min(r[name] for r in runs) for name in runs[0]}
        print(
            f"{what}: first answer {best['first']:.2f} s, last {best['last']:.2f} s, CPU {best['cpu']:.2f} s, "
            f"{best['compiled']} programs compiled; another number of lanes: {best['again']}",
            flush=True,
        )
        report.row(f"{what}, first answer", best["first"])
        report.row(f"{what}, last answer", best["last"])
        report.row(f"{what}, CPU", best["cpu"])
        report.row(f"{what}, programs compiled", best["compiled"], None, "")
        report.row(f"{what}, programs compiled for other lanes", best["again"], None, "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2])
    else:
        main()
