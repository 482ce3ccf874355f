"""`ember.lower`: the plan in words, as a listing and as a chart; what it says of calls against calls that were made."""

import itertools
import random
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_jax as ember

SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
QUESTION = ember.text("What is 6 * 7?")
KEY = jax.random.key(0)
small, medium, large = (ember.LLM(f"sim/{size}") for size in ("small", "medium", "large"))


async def _echo(value):
    return value


echo = ember.host(_echo, out=SCALAR)


def explained(fn, *args):
    return ember.lower(fn)(*args).explain()


# -- three programs, word for word -----------------------------------------------------------------------------------


class Ensemble(ember.Operator):
    members: list[ember.LLM]
    judge: ember.LLM

    def forward(self, question: ember.Text) -> ember.Text:
        answers = [member(question) for member in self.members]
        return self.judge(ember.format("{q}\n{answers}\nBest?", q=question, answers=ember.join("\n", answers)))


class Cascade(ember.Operator):
    cheap: ember.LLM
    strong: ember.LLM
    gate: eqx.nn.Linear

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        draft = self.cheap(question)
        up = jax.random.categorical(key, self.gate(ember.features(question, 64)))
        return jax.lax.cond(up == 1, lambda: self.strong(question), lambda: draft)


class Debate(ember.Operator):
    pro: ember.LLM
    con: ember.LLM
    judge: ember.LLM

    def forward(self, question: ember.Text) -> ember.Text:
        def turn(said, _):
            pro, con = said
            return (self.pro(question + con), self.con(question + pro)), None

        (pro, con), _ = jax.lax.scan(turn, (question, question), length=3)
        return self.judge(ember.format("{pro} or {con}?", pro=pro, con=con))


temperatures = [ember.LLM("sim/small", temperature=t / 4) for t in range(4)]
cascade = Cascade(small, large, eqx.nn.Linear(64, 2, key=KEY))

WORDS = {
    "ensemble": (
        Ensemble([*temperatures, medium], large),
        (QUESTION,),
        """
Ensemble makes 6 calls. The longest chain is 2 calls, one after another: 1 → 3.
First, at once:
  1. 4 calls of sim/small, at once
  2. ask sim/medium
After steps 1, 2, to write the text:
  3. ask sim/large
""",
    ),
    "cascade": (
        cascade,
        (QUESTION, KEY),
        """
Cascade makes 1 to 2 calls. None waits for another.
First, at once:
  1. ask sim/small
  2. one of 2 branches, 0 to 1 calls
     does not wait for step 1; what needs it does
     which one is known from the start
     branch 0: no call
     branch 1: 3. ask sim/large
""",
    ),
    "debate": (
        Debate(small, medium, large),
        (QUESTION,),
        """
Debate makes 7 calls. The longest chain is 4 calls, one after another: 3 × (2) → 4.
First:
  1. scan of 3 steps, one after another, 6 calls
     barrier: each step is given what the one before carried, so it waits for all of that one's calls
     each step, 2 calls:
       First, at once:
         2. ask sim/small
         3. ask sim/medium
After step 1, to write the text:
  4. ask sim/large
""",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_plan_in_words(name):
    operator, args, words = WORDS[name]
    assert explained(operator, *args) == words.strip()
    assert explained(operator, *args) == explained(operator, *args)


def test_a_plan_as_a_listing():
    assert str(ember.lower(cascade)(QUESTION, KEY)) == (
        """
plan of Cascade
1  numbers, 1 equation
2  text features
3  numbers, 6 equations  after 1, 2
4  ask sim/small
5  one of 2 branches  after 3  takes 4 later
   branch 0:
      1  wait for input 3, which it started without
   branch 1:
      1  ask sim/large
""".strip()
    )
    assert repr(ember.lower(cascade)(QUESTION, KEY)) == "<Plan of Cascade: 1 to 2 calls>"


def test_lanes_are_told_once_for_all():
    lanes = 3
    questions, keys = ember.text(["a", "b", "c"]), jax.random.split(KEY, lanes)
    found = explained(ember.jit(jax.vmap(cascade)), questions, keys)
    assert found.startswith("Cascade makes 3 to 6 calls. None waits for another.")
    assert "1. Cascade: 3 lanes, each at its own pace, 3 to 6 calls" in found
    assert "each lane, 1 to 2 calls:" in found
    assert [found.count(f"ask sim/{size}") for size in ("small", "large")] == [1, 1]


# -- which model -----------------------------------------------------------------------------------------------------

MODELS = ember.text(["sim/small", "sim/medium", "sim/large"])


def _named(models, question):
    return ember.LLM(models)(question)


def _looped(model, question):
    return jax.lax.while_loop(
        lambda c: _named(model, c[0]) != "yes", lambda c: (c[0] + _named(c[1], c[0]), c[1]), (question, model)
    )[0]


ASKED = {
    "an argument": (_named, (MODELS[0], QUESTION), ["ask sim/small"]),
    "a row": (lambda ms, q: _named(ms[1], q), (MODELS, QUESTION), ["ask sim/medium"]),
    "a closure": (lambda q: large(q), (QUESTION,), ["ask sim/large"]),
    "a row by number": (lambda ms, q, i: _named(ms[i], q), (MODELS[:2], QUESTION, jnp.int32(1)), ["ask one of 2 mod"]),
    "where": (
        lambda q, p: _named(ember.where(p, ember.text("sim/small"), ember.text("sim/large")), q),
        (QUESTION, True),
        ["ask one of 2 models (sim/large, sim/small)"],
    ),
    "stacked": (
        lambda ms, q: jax.vmap(lambda m: _named(m, q))(ms),
        (MODELS, QUESTION),
        ["3 calls of 3 models (sim/small, sim/medium, sim/large), at once"],
    ),
    "samples": (
        lambda m, q, ks: jax.vmap(lambda k: ember.LLM(m)(q, k))(ks),
        (MODELS[0], QUESTION, jax.random.split(KEY, 4)),
        ["4 calls of sim/small, at once"],
    ),
    "lanes": (
        ember.jit(jax.vmap(lambda m, q: _named(m, q), (0, None))),
        (MODELS, QUESTION),
        ["3 lanes", "ask one of 3 models (sim/small, sim/medium, sim/large)"],
    ),
    "branches": (
        lambda ms, q, p: jax.lax.cond(p, lambda: _named(ms[0], q), lambda: _named(ms[2], q)),
        (MODELS, QUESTION, True),
        ["branch 0: 2. ask sim/large", "branch 1: 3. ask sim/small"],
    ),
    "scan over models": (
        lambda ms, q: jax.lax.scan(lambda q, m: (_named(m, q), None), q, ms)[0],
        (MODELS, QUESTION),
        ["each step: 2. ask one of 3 models (sim/small, sim/medium, sim/large)"],
    ),
    "scan": (
        lambda m, q: jax.lax.scan(lambda q, _: (_named(m, q), None), q, length=2)[0],
        (MODELS[1], QUESTION),
        ["each step: 2. ask sim/medium"],
    ),
    "carried through a loop": (
        _looped,
        (MODELS[1], QUESTION),
        ["go on: 2. ask sim/medium", "turn: 3. ask sim/medium"],
    ),
    "written": (lambda q: _named(ember.text("sim/") + q, q), (ember.text("small"),), ["ask an LLM"]),
    "choose": (lambda q: small.choose(q, ["a", "b"]).index, (QUESTION,), ["ask sim/small to choose"]),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_call_says_which_model_it_asks(name):
    fn, args, wanted = ASKED[name]
    plan = ember.lower(fn)(*args)
    for words in wanted:
        assert words in plan.explain()
        part = words.split(": ")[-1].split(". ")[-1]
        assert part in str(plan) and part in plan.to_mermaid()


def test_many_models_are_counted():
    """The simulated provider is asked nothing, so that models need not exist."""
    models = ember.text([f"many/{i}" for i in range(30)])
    ember.register("many", ember.providers.Callable(lambda request: ""))
    found = explained(lambda ms: jax.vmap(lambda m: ember.LLM(m)(QUESTION))(ms), models)
    assert "30 calls of 30 models (many/0, many/1, many/2, many/3, …), at once" in found


SECRETS = ("a prompt/with-a-slash of mine", "You are my-private/persona.", "sk-0123456789")


def test_no_words_but_model_ids_show():
    def program(prompt, system, key, model):
        answer = ember.LLM("sim/small", system=system)(prompt, key)
        asked = ember.LLM(model)(ember.format("{a} sk-0123456789", a=answer))  # a prompt where a model should be
        loop = lambda words, _: (ember.LLM("sim/large", system=system)(words + prompt), None)
        return jax.lax.scan(loop, asked, length=2)[0]

    prompt, system = map(ember.text, SECRETS[:2])
    plan = ember.lower(program)(prompt, system, jax.random.key(12345), prompt)
    shown = "\n".join([plan.explain(), str(plan), repr(plan), plan.to_mermaid()])
    assert "sim/small" in shown and "sim/large" in shown and "an unknown model" in shown
    for secret in (*SECRETS, "my", "private", "persona", "12345"):
        assert secret not in shown


# -- counts against calls that were made -----------------------------------------------------------------------------


class Program:
    """A random program: a tree of sequences, branches on inputs of their own, scans, maps and lanes."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.switches: list[int] = []  # how many branches each has
        self.made = 0
        self.ask = ember.host(self._ask, out=SCALAR, pure=False)
        self.tree = [self.grown(2) for _ in range(2)]

    async def _ask(self, value):
        self.made += 1
        return value

    def grown(self, height):
        kind = self.draw.choice(["ask", "ask", "switch", "scan", "map", "vmap"] if height else ["ask", "numbers"])
        if kind in ("ask", "numbers"):
            return kind, None, None
        inner = [self.grown(height - 1) for _ in range(self.draw.randint(1, 2))]
        if kind != "switch":
            return kind, self.draw.randint(0, 3), inner
        self.switches.append(self.draw.randint(2, 3))
        place = len(self.switches) - 1
        return kind, place, [inner, *([self.grown(height - 1)] for _ in range(self.switches[place] - 1))]

    def __call__(self, x, indices):
        return self.run(self.tree, x, indices)

    def run(self, steps, x, indices):
        for kind, n, inner in steps:
            x = self.step(kind, n, inner, x, indices)
        return x

    def step(self, kind, n, inner, x, indices):
        if kind == "ask":
            return self.ask(x + 1)
        if kind == "numbers":
            return jnp.sin(x)
        if kind == "switch":
            return jax.lax.switch(indices[n], [lambda x, b=b: self.run(b, x, indices) for b in inner], x)
        if kind == "scan":
            return jax.lax.scan(lambda c, _: (self.run(inner, c, indices), None), x, length=n)[0]
        each = {"map": jax.lax.map, "vmap": lambda f, xs: jax.vmap(ember.jit(f))(xs)}[kind]
        return jnp.sum(each(lambda v: self.run(inner, v, indices), x + jnp.arange(float(n))))


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_the_least_and_the_most_calls_that_any_input_makes(seed):
    program = Program(seed)
    choices = [range(n) for n in program.switches]
    plan = ember.lower(program)(jnp.float32(1), jnp.zeros(len(choices), jnp.int32))
    run, made = ember.jit(program), []
    for indices in itertools.product(*choices):
        program.made = 0
        with ember.session():
            run(jnp.float32(1), jnp.asarray(indices, jnp.int32).reshape(len(choices)))
        made.append(program.made)
    least, most = min(made), max(made)
    wanted = f"{most:,} call{'s' * (most != 1)}" if least == most else f"{least:,} to {most:,} calls"
    assert repr(plan) == f"<Plan of Program: {wanted if most else 'no call'}>"
    assert plan.explain().startswith(f"Program makes {wanted if most else 'no call'}.")


def test_a_loop_has_a_least_count_only():
    found = explained(lambda x: jax.lax.while_loop(lambda x: echo(x) < 3, lambda x: echo(x + 1), echo(x)), 0.0)
    assert "makes 2 calls or more. The longest chain is 2 calls or more, one after another: 1 → n × (3 → 4)." in found
    assert "to decide whether to go on: 3. call _echo" in found and "each turn: 4. call _echo" in found


def test_without_calls_there_is_nothing_to_tell():
    assert explained(jnp.sin, jnp.float32(1)) == "sin makes no call."


# -- what waits for what, and why ------------------------------------------------------------------------------------


def test_reasons():
    def program(x):
        a = echo(x)
        b = echo(a)  # as it is
        c = echo(jnp.sin(b) + a)  # numbers of two
        words = small(ember.format("{c:.1f}", c=c))  # text
        return jax.lax.cond(words == "yes", lambda: medium("more"), lambda: words)  # decides, and is handed on

    heads = [line for line in explained(program, jnp.float32(1)).splitlines() if line.startswith("After")]
    assert heads == [
        "After step 1, to hand its answer on:",
        "After steps 1, 2, to compute the numbers:",
        "After step 3, to write the text:",
        "After step 4, to choose the branch and to hand its answer on:",
    ]


def test_what_a_branch_starts_without():
    """The branch is chosen by the input; only its inner call needs the chain of two."""

    def program(x):
        a = echo(echo(x))
        return jax.lax.cond(x > 0, lambda: echo(a) + echo(x + 7), lambda: echo(a + 1))

    found = explained(program, jnp.float32(1))
    assert found.startswith("program makes 3 to 4 calls. The longest chain is 3 calls, one after another: ")
    assert "does not wait for call _echo; what needs it does" in found
    assert "After what it started without, to compute the numbers:" in found
    assert "After what it started without, to hand its answer on:" in found


def test_a_scan_whose_carry_needs_no_call_asks_all_steps_at_once():
    def program(key, question):
        def step(key, _):
            key, mine = jax.random.split(key)
            return key, small(question, mine)

        return ember.join(" ", jax.lax.scan(step, key, length=4)[1])

    found = explained(program, KEY, QUESTION)
    assert found.startswith("program makes 4 calls. None waits for another.")
    assert "barrier: each step waits for what the one before carried, and for nothing else of it" in found


def test_each_after_one_of_a_group_and_after_some():
    def program(x):
        first = [echo(x + i) for i in range(4)]
        second = [echo(f * 2) for f in first]
        return echo(second[0] + second[1] + second[2]) + echo(first[0] + first[1] + second[3])

    found = explained(program, jnp.float32(1))
    assert "Each after one of the 4 in step 1, to compute the numbers:\n  2. 4 calls of _echo, at once" in found
    assert "After some of the 4 in step 2, to compute the numbers:" in found
    assert "After some of the 4 in step 1 and one of the 4 in step 2, to compute the numbers:" in found


def test_equal_calls_are_told_to_be_one():
    found = explained(lambda q: ember.join(" ", [small(q), small(q), small(q)]), QUESTION)
    assert "makes 1 call." in found
    assert "stands 3 times in the program with the same arguments, and is made once" in found


def test_what_no_lane_varies_is_told_to_be_made_once():
    run = ember.jit(lambda xs, q: jax.vmap(ember.jit(lambda x: small(ember.format("{a} {x}", a=medium(q), x=x))))(xs))
    found = explained(run, jnp.arange(5), QUESTION)
    assert "the same in all 5 lanes, so it is made once, before they start" in found
    assert "makes 6 calls." in found


def test_lanes_that_meet_say_why():
    def program(question, keys):
        answers = jax.vmap(lambda key: medium("Improve: " + small(question, key)))(keys)
        return large(ember.join("\n", answers))

    found = explained(program, QUESTION, jax.random.split(KEY, 5))
    assert re.search(r"barrier: what comes after waits for the slowest, as .*join", found)


# -- many calls ------------------------------------------------------------------------------------------------------


def _layers(x, wide, deep):
    for _ in range(deep):
        x = sum(echo(x + i) for i in range(wide))
    return x


def test_equal_layers_are_told_once():
    found = explained(lambda x: _layers(x, 6, 30), jnp.float32(1))
    path = "1 → 2 → 3 → 4 → 5 → 6 → … → 30"
    assert found.splitlines()[1:] == [
        "First:",
        "  1. 6 calls of _echo, at once",
        "After step 1, to compute the numbers:",
        "  2. 6 calls of _echo, at once",
        "… the same again, 28 times: 3-30, 168 calls",
    ]
    assert found.splitlines()[0].endswith(f"makes 180 calls. The longest chain is 30 calls, one after another: {path}.")


def test_patterns_of_several_sections_are_told_once():
    def program(question):
        for _ in range(9):
            question = large("Improve: " + small(question))
        return question

    assert "… the same 2 again, 7 times: 4-17, 14 calls" in explained(program, QUESTION)


def test_long_plans_are_short_texts():
    def program(x):
        draw, values = random.Random(0), [x]
        for i in range(400):
            a, b = draw.choices(values[-20:], k=2)
            values.append(echo(a * i + b))
        return sum(values)

    plan = ember.lower(program)(jnp.float32(1))
    texts = [plan.explain(), str(plan), plan.to_mermaid()]
    assert max(len(t.splitlines()) for t in texts) < 300
    assert max(len(line) for t in texts for line in t.splitlines()) < 200
    counts = [sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) calls?$", t, re.M)) for t in texts[:1]]
    single = len(re.findall(r"\d\. call _echo$", texts[0], re.M))
    several = sum(map(int, re.findall(r"(\d+) calls of _echo", texts[0])))
    assert counts[0] + single + several == 400


# -- charts ----------------------------------------------------------------------------------------------------------

_TEXT = r'"[^"`<>\\]*(<br/>[^"`<>\\]*)?"'
_NODE = re.compile(rf"\s+\w+(\[\[{_TEXT}\]\]|\({_TEXT}\)|\[/{_TEXT}/\]|\[{_TEXT}\])")


def check(chart):
    """Reads a chart by the part of Mermaid's grammar that it needs; every arrow is between what is there."""
    head, *lines = chart.splitlines()
    assert head == "flowchart TD"
    names, arrows, nesting = set(), [], 0
    for line in lines:
        if arrow := re.fullmatch(r"\s+(\w+) (?:-->|-\.->) (\w+)", line):
            arrows.append(arrow.groups())
        elif opened := re.fullmatch(rf"\s+subgraph (\w+)\[{_TEXT}\]", line):
            nesting += 1
            names.add(opened[1])
        elif line.strip() == "end":
            nesting -= 1
            assert nesting >= 0
        else:
            assert _NODE.fullmatch(line), line
            names.add(re.match(r"\s+(\w+)", line)[1])
    assert nesting == 0 and names >= set(itertools.chain(*arrows))
    assert "end" not in names  # a word of Mermaid's own


CHARTS = {
    "ensemble": (Ensemble([*temperatures, medium], large), (QUESTION,)),
    "cascade": (cascade, (QUESTION, KEY)),
    "debate": (Debate(small, medium, large), (QUESTION,)),
    "lanes": (ember.jit(jax.vmap(cascade)), (ember.text(["a", "b"]), jax.random.split(KEY, 2))),
    "layers": (lambda x: _layers(x, 20, 20), (jnp.float32(1),)),
    "loop": (lambda x: jax.lax.while_loop(lambda x: echo(x) < 3, lambda x: echo(x + 1), x), (jnp.float32(1),)),
    "no call": (jnp.sin, (jnp.float32(1),)),
    "strange names": (
        lambda x: jax.jit(jax.named_call(lambda x: echo(x) + 1, name='a "b" <c> #d; `e`'))(x),
        (jnp.float32(1),),
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_mermaid(name):
    fn, args = CHARTS[name]
    check(ember.lower(fn)(*args).to_mermaid())


def test_a_chart_has_the_steps_and_arrows_of_the_listing():
    plan = ember.lower(CHARTS["ensemble"][0])(QUESTION)
    listing, chart = str(plan), plan.to_mermaid()
    assert chart.count("[[") == listing.count("ask ") == 6
    assert chart.count("-->") == len(re.findall(r"after", listing)) + 4  # one of the three waits for five


def test_lowering_makes_no_call_and_running_does():
    made = []
    spy = ember.host(lambda x: made.append(1) or x, out=SCALAR)
    plan = ember.lower(lambda x: spy(x) * 2)(jnp.float32(3))
    plan.explain(), str(plan), plan.to_mermaid()
    assert not made
    np.testing.assert_array_equal(plan.run(jnp.float32(4)), 8)
    assert made == [1]
