"""The second call with new data costs nothing: no retrace, no compilation, no new island."""

import contextlib
import itertools

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax._engine import island

TRACES = []
COMPILATIONS = []
DATA = itertools.count()


def _compiled(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(event)


jax.monitoring.register_event_duration_secs_listener(_compiled)


async def _echo(word):
    return word + "!"


echo = ember.host(_echo, out=ember.Text)


class Judge(ember.Operator):
    """A call before and after numbers, in a branch, with words and weights as leaves."""

    prefix: ember.Text
    weight: Float[Array, "4"]

    def forward(self, word: ember.Text) -> tuple[ember.Text, Float[Array, ""]]:
        TRACES.append("forward")
        said = echo(self.prefix + word)
        score = jnp.sum(self.weight * ember.features(said, 4))
        said = jax.lax.cond(score > 0, lambda: echo(said), lambda: said)
        return said, score * jnp.tanh(score)


def judge():
    return Judge(ember.text(f"p{next(DATA)}"), jnp.full(4, 1.0 + next(DATA)))


def stacked():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), judge(), judge())


def word():
    return ember.text(f"word {next(DATA)}")


def words(n=3):
    return ember.text([f"word {next(DATA)}" for _ in range(n)])


def apply(op, word):
    return op(word)


def score(op, word):
    return op(word)[1]


def mean(op, words):
    return jnp.mean(jax.vmap(op)(words)[1])


FIXED = judge()
over_words = jax.vmap(apply, in_axes=(None, 0))
PROGRAMS = {
    "eager vmap": (over_words, lambda: (judge(), words())),
    "eager vmap of one operator": (lambda w: jax.vmap(FIXED)(w), lambda: (words(),)),
    "eager vmap of vmap": (lambda o, w: jax.vmap(jax.vmap(o))(w), lambda: (judge(), words(4).reshape(2, 2))),
    "jax.jit of an operator": (jax.jit(FIXED), lambda: (word(),)),
    "jax.jit": (jax.jit(apply), lambda: (judge(), word())),
    "jax.jit of vmap": (jax.jit(over_words), lambda: (judge(), words())),
    "jax.jit of scan": (
        jax.jit(lambda o, w: jax.lax.scan(lambda c, x: (c + x, o(c + x)[1]), ember.text(""), w)),
        lambda: (judge(), words()),
    ),
    "ember.jit of an operator": (ember.jit(FIXED), lambda: (word(),)),
    "ember.jit": (ember.jit(apply), lambda: (judge(), word())),
    "ember.jit of vmap": (ember.jit(over_words), lambda: (judge(), words())),
    "vmap of ember.jit": (jax.vmap(ember.jit(apply), in_axes=(None, 0)), lambda: (judge(), words())),
    "eqx.filter_jit": (eqx.filter_jit(apply), lambda: (judge(), word())),
    "eqx.filter_jit of vmap": (eqx.filter_jit(over_words), lambda: (judge(), words())),
    "eqx.filter_grad": (eqx.filter_grad(score), lambda: (judge(), word())),
    "eqx.filter_grad of vmap": (eqx.filter_grad(mean), lambda: (judge(), words())),
    "eqx.filter_jit of filter_value_and_grad": (
        eqx.filter_jit(eqx.filter_value_and_grad(mean)),
        lambda: (judge(), words()),
    ),
    "vmap of grad": (
        jax.vmap(lambda w, x: jax.grad(lambda w: Judge(FIXED.prefix, w)(x)[1])(w)),
        lambda: (jnp.full((2, 4), float(next(DATA))), words(2)),
    ),
    "a stack of operators": (eqx.filter_vmap(apply), lambda: (stacked(), words(2))),
    "a stack of operators in jit": (eqx.filter_jit(eqx.filter_vmap(apply)), lambda: (stacked(), words(2))),
    "a stack over words": (
        lambda o, w: eqx.filter_vmap(lambda o: jax.vmap(o)(w))(o),
        lambda: (stacked(), words(3)),
    ),
}


class Counts:
    def __init__(self):
        self.traces, self.compilations, self.islands = len(TRACES), len(COMPILATIONS), island.made

    def since(self):
        now = Counts()
        return {
            "traces": now.traces - self.traces,
            "compilations": now.compilations - self.compilations,
            "islands": now.islands - self.islands,
        }


@contextlib.contextmanager
def nothing_new():
    before = Counts()
    yield
    assert before.since() == {"traces": 0, "compilations": 0, "islands": 0}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_second_call_with_new_data_traces_and_compiles_nothing(name):
    program, data = PROGRAMS[name]
    arguments = [data() for _ in range(3)]
    before = Counts()
    first = jax.block_until_ready(program(*arguments[0]))
    warm = before.since()
    with nothing_new():
        second = jax.block_until_ready(program(*arguments[1]))
        third = jax.block_until_ready(program(*arguments[2]))
    assert jax.tree.structure(first) == jax.tree.structure(second) == jax.tree.structure(third)
    assert warm["compilations"] >= 1 or name.startswith(("eager", "a stack over"))  # the counters do count


def test_the_counters_count():
    before = Counts()

    @ember.jit
    def fresh(word):
        TRACES.append("fresh")
        return echo(word)

    fresh(ember.text("a"))
    counts = before.since()
    assert counts["traces"] >= 1 and counts["islands"] == 1 and counts["compilations"] >= 1


def test_line_by_line_nothing_compiles_a_second_time():
    @ember.operator
    def op(word: ember.Text, x: Float[Array, ""]) -> tuple[ember.Text, Float[Array, ""]]:
        return echo(ember.format("{w} {x}", w=word, x=x)), jnp.sin(x)

    op(word(), jnp.float32(1))
    before = Counts()
    for i in range(3):
        op(word(), jnp.float32(i))
    assert before.since() == {"traces": 0, "compilations": 0, "islands": 0}


def test_a_fresh_function_operator_of_the_same_function_is_the_same_program():
    def shared(word: ember.Text) -> ember.Text:
        TRACES.append("shared")
        return echo(word)

    jax.vmap(ember.operator(shared))(words())
    with nothing_new():
        jax.vmap(ember.operator(shared))(words())


def test_scalars_of_every_kind_are_one_program():
    @ember.operator
    def scaled(word: ember.Text, x: Float[Array, ""]) -> Float[Array, ""]:
        TRACES.append("scaled")
        return x * ember.features(echo(word), 1)[0]

    run = jax.vmap(scaled, in_axes=(0, None))
    scalars = [0.25, 1, jnp.float32(2), jnp.asarray(3.0), np.float32(4), np.float64(5)]
    run(words(), 0.5)
    before = Counts()
    for x in scalars:
        run(words(), x)  # JAX compiles the conversion of each kind of number, once in a process
    assert before.since()["traces"] == before.since()["islands"] == 0
    with nothing_new():
        for x in scalars:
            run(words(), x)


def test_settings_of_every_value_are_one_program():
    @ember.operator
    def asks(llm: ember.LLM, word: ember.Text, key: ember.Key) -> ember.Text:
        TRACES.append("asks")
        return llm(word, key)

    run = ember.jit(asks)
    keys = list(jax.random.split(jax.random.key(0), 4))
    llms = [ember.LLM("sim/small", temperature=t) for t in (0.5, jnp.float32(0.25), 1, np.float64(2))]
    with ember.session():
        run(llms[0], word(), keys[0])
        with nothing_new():
            for llm, key in zip(llms[1:], keys[1:], strict=True):
                run(llm, word(), key)


def test_prompts_of_every_length_are_one_program():
    run = ember.jit(lambda w: echo(w))
    run(word())
    with nothing_new():
        for length in (0, 1, 1000, 100_000):
            run(ember.text("x" * length))


def test_lane_counts_share_segments_within_a_bucket():
    """Another number of lanes traces anew, as everywhere in JAX, but compiles no more than its own outer program."""
    run = jax.vmap(judge())
    for n in (2, 3, 9):  # buckets 8 and 128
        jax.block_until_ready(run(words(n)))
    for n in (2, 3, 9):
        with nothing_new():
            jax.block_until_ready(run(words(n)))


def test_trips_of_a_loop_and_branches_taken_are_no_new_program():
    step = ember.host(lambda w: "stop" if len(w) > 3 else w + "a", out=ember.Text)

    @ember.jit
    def loop(word):
        TRACES.append("loop")
        return jax.lax.while_loop(lambda w: w != "stop", step, word)

    assert str(loop(ember.text("a"))) == "stop"
    with nothing_new():
        for start in ("stop", "aa", "", "aaaaaa"):
            assert str(loop(ember.text(start))) == "stop"


def test_a_new_session_is_no_new_program():
    run = ember.jit(lambda w: echo(w))
    run(word())
    with nothing_new():
        for _ in range(2):
            with ember.session() as session:
                run(word())
            assert session.report().islands == 1


def test_forward_is_traced_at_most_twice_for_one_program():
    class Once(ember.Operator):
        def forward(self, word: ember.Text) -> ember.Text:
            TRACES.append("once")
            return echo(word)

    before = Counts()
    jax.vmap(Once())(words())
    assert before.since()["traces"] <= 2
