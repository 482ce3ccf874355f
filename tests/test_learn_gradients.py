"""Gradients of expected losses: closed forms in plain JAX, by enumeration exactly and by score within four errors."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import ember_jax as ember
from ember_jax import learn, non, testing
from ember_jax._engine import island

Vector = Float[Array, "3"]
Number = Float[Array, ""]
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
KEY = jax.random.key(0)
XS = jnp.array([0.7, -1.3])

made = []


def _price(member, x):
    made.append((int(member), round(float(x), 4)))
    return float(price_of(int(member), float(x)))


def by_night(name):
    """The programs that take longest to compile are met by night."""
    return pytest.param(name, marks=pytest.mark.nightly) if name in ("walk", "lanes") else name


def price_of(member, x):
    """What a member says of a number."""
    return (member + 1) * 0.5 + x * (member - 1)


price = ember.host(_price, out=SCALAR)


@pytest.fixture(autouse=True)
def in_a_session():
    made.clear()
    with ember.session(journal=None):
        yield


# -- programs, and every way they may go in plain JAX: its probability and its result --------------------------------


def known(member, x):
    return jax.lax.stop_gradient(price_of(member, x))


class Router(ember.Operator):
    """Picks one of three; only the picked one is called."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        chosen = learn.sample(self.w * x, key)
        return jax.lax.switch(chosen, [lambda i=i: price(i, x) * self.w[i] for i in range(3)])


class Gate(ember.Operator):
    """Stops, or goes on to draw again, in one branch only, with the same key."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        draft = price(0, x)
        go_on = learn.sample(jnp.stack([self.w[0], draft * self.w[1]]), jax.random.fold_in(key, 1))
        more = lambda: price(learn.sample(self.w, key), x) + self.w[2]
        less = lambda: draft * (learn.sample(self.w[:2], key) + 1).astype(float)
        return jax.lax.cond(go_on == 1, more, less)


def of_gate(w, x):
    draft = known(0, x)
    less, more = jax.nn.softmax(jnp.stack([w[0], draft * w[1]]))
    return [
        *((more * p, known(i, x) + w[2]) for i, p in enumerate(jax.nn.softmax(w))),
        *((less * p, draft * (1 + i)) for i, p in enumerate(jax.nn.softmax(w[:2]))),
    ]


class Walk(ember.Operator):
    """Draws at each of three steps, depending on where the last one led."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        def step(at, key):
            moved = learn.sample(jnp.stack([self.w[0] * at, self.w[1]]), key)
            at = jax.lax.cond(moved == 1, lambda: price(2, at) * 0.5, lambda: at + self.w[2])
            return at, at * at

        last, squares = jax.lax.scan(step, x, jax.random.split(key, 3))
        return last + 0.1 * squares.sum()


def of_walk(w, x):
    ways = []
    for moves in itertools.product([0, 1], repeat=3):
        weight, at, squares = 1.0, x, 0.0
        for moved in moves:
            weight = weight * jax.nn.softmax(jnp.stack([w[0] * at, w[1]]))[moved]
            at = known(2, at) * 0.5 if moved else at + w[2]
            squares = squares + at * at
        ways.append((weight, at + 0.1 * squares))
    return ways


class Nested(ember.Operator):
    """Draws, and asks an operator that draws, under `jax.jit` and `jax.checkpoint`."""

    gate: Gate

    def forward(self, x: Number, key: ember.Key) -> Number:
        first, second = jax.random.split(key)
        flip = learn.sample(self.gate.w[:2], first)
        one = jax.checkpoint(jax.jit(self.gate))(x, second)
        return jax.lax.cond(flip == 0, lambda: one * self.gate.w[1], lambda: one * one)


def of_nested(w, x):
    same, squared = jax.nn.softmax(w[:2])
    ways = [((same * p, a * w[1]), (squared * p, a * a)) for p, a in of_gate(w, x)]
    return [way for pair in ways for way in pair]


def _risky(member, x):
    if member == 1 or x < -1:
        raise ValueError("no answer")
    return _price(member, x)


risky = ember.host(_risky, out=SCALAR)


class Risky(ember.Operator):
    """Fails where the drawn member does, and before any draw for some numbers."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        draft = risky(0, x)
        chosen = learn.sample(self.w * draft, key)
        return risky(chosen, x + 1.5) * self.w[2]


class Attempted(ember.Operator):
    risky: Risky

    def forward(self, x: Number, key: ember.Key) -> Number:
        out, ok = ember.attempt(self.risky)(x, key)
        return jnp.where(ok, out, 3.0)


def of_attempted(w, x):
    if x < -1:
        return [(1.0, 3.0)]
    chosen = jax.nn.softmax(w * known(0, x))
    return [(p, known(i, x + 1.5) * w[2] if i != 1 else 3.0) for i, p in enumerate(chosen)]


class Lanes(ember.Operator):
    """Lanes of an operator, and of a plain function, that go their own ways."""

    gate: Gate

    def forward(self, x: Number, key: ember.Key) -> Number:
        first, second = jax.random.split(key)
        mapped = jax.vmap(self.gate)(x[None], first[None])
        inline = jax.vmap(self.gate.forward)((x + 1)[None], second[None])
        return (mapped + inline)[0]


def of_lanes(w, x):
    return [(p * q, a + b) for (p, a), (q, b) in itertools.product(of_gate(w, x), of_gate(w, x + 1))]


W = jnp.array([0.3, -0.4, 0.6])
PROGRAMS = {
    "walk": (Walk, of_walk),
    "nested": (lambda w: Nested(Gate(w)), of_nested),
    "attempted": (lambda w: Attempted(Risky(w)), of_attempted),
    "lanes": (lambda w: Lanes(Gate(w)), of_lanes),
}


def loss(op, x, key):
    return (op(x, key) - 1.0) ** 2


def by_hand(name):
    """The expected loss, and its gradient."""
    ways = PROGRAMS[name][1]
    expected = lambda w: sum(p * (y - 1.0) ** 2 for x in XS.tolist() for p, y in ways(w, x)) / len(XS)
    return jax.jit(jax.value_and_grad(expected))(W)


def flat(grads):
    """The gradient by `W`, of which every array of an operator is made."""
    return sum(jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [by_night(name) for name in PROGRAMS if name != "lanes"])
def test_enumeration_is_exact(name):
    op = PROGRAMS[name][0](W)
    value, grads = jax.jit(learn.value_and_grad(loss, estimator="enumerate"))(op, (XS,), KEY)
    wanted, slope = by_hand(name)
    np.testing.assert_allclose(value, wanted, rtol=2e-6)
    np.testing.assert_allclose(flat(grads), slope, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [*map(by_night, PROGRAMS)])
def test_scores_are_unbiased(name):
    op, step = PROGRAMS[name][0](W), learn.value_and_grad(loss, samples=4)
    values, grads = jax.jit(jax.vmap(lambda key: step(op, (XS,), key)))(jax.random.split(KEY, 300))
    found = np.concatenate([values[:, None], flat(grads)], axis=1)
    value, slope = by_hand(name)
    error = found.std(0) / np.sqrt(len(found))
    z = (found.mean(0) - np.array([value, *slope])) / error
    assert np.all(np.abs(z) < 4), z
    assert np.all(error[1:] < 0.2 * np.linalg.norm(slope))  # which a gradient of zero would fail


# -- the estimators' settings: of a program without calls, whose expected loss is a table's ----------------------------

TABLE = jnp.array([0.2, 1.0, 3.0])


def of_table(w, x, key):
    return TABLE[learn.sample(w * x, key)] + 0.1 * w[0]


def mean_of_table(w):
    return jnp.mean(jax.vmap(lambda x: jax.nn.softmax(w * x) @ TABLE)(XS)) + 0.1 * w[0]


def test_a_baseline_lowers_the_variance_and_not_the_mean():
    def estimates(baseline):
        step = learn.value_and_grad(of_table, samples=4, baseline=baseline)
        return np.asarray(jax.jit(jax.vmap(lambda key: step(W, (XS,), key)[1]))(jax.random.split(KEY, 1000)))

    plain, loo = estimates("none"), estimates("loo")
    assert loo.var(0).sum() < 0.7 * plain.var(0).sum()  # measured: 0.124 and 0.239
    for found in (plain, loo):
        error = found.std(0) / np.sqrt(len(found))
        assert np.all(np.abs(found.mean(0) - jax.grad(mean_of_table)(W)) < 4 * error)


def for_each(keys, count):
    """Keys folded from a place, for each key."""
    fold = lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(fold)(keys) if keys.ndim else fold(keys)


def test_a_learned_baseline_has_the_gradient_of_its_squared_error():
    op = {"w": W, "level": jnp.float32(0.8)}
    loss = lambda op, x, key: of_table(op["w"], x, key)
    step = learn.value_and_grad(loss, samples=3, baseline=lambda op, x: op["level"] * x, fresh=True)
    value, grads = step(op, (XS,), KEY)
    keys = for_each(for_each(KEY, 2), 3)
    losses = jax.vmap(jax.vmap(lambda x, key: loss(op, x, key), (None, 0)))(XS, keys)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6)
    wanted = jax.grad(lambda level: jnp.mean((losses - (level * XS)[:, None]) ** 2) / 2)(op["level"])
    np.testing.assert_allclose(grads["level"], wanted, rtol=1e-5)


def test_the_gradient_is_like_the_operator_and_holds_what_can_be_learned():
    op = (W, ember.LLM("sim/small", temperature=0.5), jnp.arange(3), KEY, ember.text("words"), "static", None)
    _, grads = learn.value_and_grad(lambda op, x, key: of_table(op[0], x, key))(op, (XS,), KEY)
    assert jax.tree.structure(grads) == jax.tree.structure(eqx.filter(op, eqx.is_inexact_array))
    assert len(jax.tree.leaves(grads)) == 1


def test_a_draw_that_cannot_be_made_is_no_outcome():
    w = jnp.array([0.5, -jnp.inf, 0.2])
    step = learn.value_and_grad(lambda w, x, key: price(learn.sample(w, key), x), estimator="enumerate")
    value, grads = step(w, (XS,), KEY)
    assert {member for member, _ in made} == {0, 2}
    p, q = jax.nn.softmax(w[jnp.array([0, 2])])
    first, last = (np.mean([price_of(i, x) for x in XS]) for i in (0, 2))
    np.testing.assert_allclose(value, p * first + q * last, rtol=1e-6)
    np.testing.assert_allclose(grads, [p * q * (first - last), 0, p * q * (last - first)], rtol=1e-5)


# -- calls: which, how often, at what cost ---------------------------------------------------------------------------

MODELS = {
    "small": testing.SimModel(accuracy=0.0, latency=0.0),
    "middle": testing.SimModel(accuracy=0.5, latency=0.0),
    "large": testing.SimModel(accuracy=1.0, latency=0.0, input_price=1.0, output_price=4.0),
}


def simulated():
    return ember.session(providers={"sim": testing.Sim(MODELS)})


class Pick(ember.Operator):
    """A router of three models, of a hand's breadth."""

    logits: Vector

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        models = [ember.LLM(f"sim/{name}") for name in MODELS]
        return jax.lax.switch(learn.sample(self.logits, key), [lambda m=m: m(question) for m in models])


def cost(op, question, key):
    return 1e5 * ember.metered(op)(question, key)[1].cost


QUESTIONS = ember.text([f"What is {i} + {3 * i}?" for i in range(5)])


def test_enumeration_pays_each_branch_once_and_the_second_epoch_nothing():
    with simulated() as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        step = jax.jit(learn.value_and_grad(cost, estimator="enumerate"))
        value, grads = step(Pick(W), (QUESTIONS,), KEY)
        assert run.report().requests == 3 * 5
        costs = jnp.array(
            [jax.vmap(ember.metered(ember.LLM(f"sim/{name}")))(QUESTIONS)[1].cost.mean() for name in MODELS]
        )
        assert run.report().requests == 3 * 5
        wanted, slope = jax.value_and_grad(lambda w: 1e5 * jax.nn.softmax(w) @ costs)(W)
        np.testing.assert_allclose(value, wanted, rtol=2e-6)
        np.testing.assert_allclose(grads.logits, slope, rtol=1e-5)
        jax.block_until_ready(step(Pick(W + 1), (QUESTIONS,), jax.random.key(3)))
        assert run.report().requests == 3 * 5


def test_scores_of_a_metered_cost_are_unbiased_and_pay_only_for_what_is_drawn():
    w = jnp.array([-jnp.inf, 0.3, 0.4])
    step = learn.value_and_grad(cost, samples=4)
    with simulated() as run, warnings.catch_warnings():
        warnings.simplefilter("error")  # that samples without a key are equal is what is meant
        _, grads = jax.jit(jax.vmap(lambda key: step(Pick(w), (QUESTIONS,), key)))(jax.random.split(KEY, 60))
        assert run.report().requests == 2 * 5
        assert {call.model for call in run.calls()} == {"sim/middle", "sim/large"}
        exact = learn.value_and_grad(cost, estimator="enumerate")(Pick(w), (QUESTIONS,), KEY)[1].logits
        assert run.report().requests == 2 * 5
    found = np.asarray(grads.logits)
    assert np.all(found[:, 0] == 0)
    assert np.all(np.abs(found.mean(0) - exact)[1:] < 4 * found.std(0)[1:] / np.sqrt(len(found)))
    assert exact[2] > 0.1


class Cascade(ember.Operator):
    gate: eqx.nn.Linear

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        draft = ember.LLM("sim/small")(question)
        up = learn.sample(self.gate(ember.features(question, 64)), key)
        return jax.lax.cond(up == 1, lambda: ember.LLM("sim/large")(question), lambda: draft)


def test_a_gate_learns_to_send_hard_questions_to_the_strong_member():
    hard = np.arange(12) % 2 == 1
    asked = [f"What is {i} {'*' if h else '+'} 7?" for i, h in enumerate(hard)]
    questions, golds = ember.text(asked), jnp.array([i * 7.0 if h else i + 7.0 for i, h in enumerate(hard)])
    small = testing.SimModel(accuracy=lambda prompt: 1.0 if "+" in prompt else 0.0, latency=0.0)
    optimiser = optax.sgd(4.0, momentum=0.5)

    def loss(op, question, gold, key):
        answer, usage = ember.metered(op)(question, key)
        return 5.5e4 * usage.cost - (ember.parse_number(answer) == gold).astype(float)

    grad = learn.value_and_grad(loss, samples=4)

    @eqx.filter_jit
    def step(op, state, key):
        value, grads = grad(op, (questions, golds), key)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(op, updates), state, value

    op = Cascade(eqx.nn.Linear(64, 2, key=KEY))
    state = optimiser.init(eqx.filter(op, eqx.is_inexact_array))
    with ember.session(providers={"sim": testing.Sim({**MODELS, "small": small})}) as run:
        op, state, first = step(op, state, KEY)
        made = island.made
        for i in range(40):
            op, state, value = step(op, state, jax.random.key(i))
        assert island.made == made
        assert run.report().requests <= 24
        ups = jax.vmap(lambda q: jnp.argmax(op.gate(ember.features(q, 64))))(questions)
    np.testing.assert_array_equal(ups, hard)
    assert value < first - 0.2


def test_equal_keys_give_equal_gradients_and_no_call_after_the_first_traces_anything():
    traced = []

    def counted(op, x, key):
        traced.append(x)
        return loss(op, x, key)

    step = learn.value_and_grad(counted, samples=2)
    first = step(Router(W), (XS,), KEY)
    before, islands = len(traced), island.made
    again = step(Router(W), (XS,), KEY)
    np.testing.assert_array_equal(flat(first[1]), flat(again[1]))
    other = step(Router(W + 1), (XS + 1,), jax.random.key(1))
    assert (len(traced), island.made) == (before, islands)
    assert np.any(flat(first[1]) != flat(other[1]))


def test_members_of_a_tolerant_ensemble_draw_each_for_itself():
    class Sampled(Pick):
        def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
            models = [ember.LLM(f"sim/{name}") for name in MODELS]
            return jax.lax.switch(learn.sample(self.logits, key), [lambda m=m: m(question, key) for m in models])

    found = []
    for tolerant in (True, False):
        vote = non.Vote(non.Ensemble(Sampled(W), n=3, tolerant=tolerant))
        with simulated() as run:
            found.append(flat(jax.jit(learn.value_and_grad(cost, samples=2))(vote, (QUESTIONS,), KEY)[1]))
            assert run.report().requests == 5 * 2 * 3
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert np.all(found[0] != 0)


# -- what is refused -------------------------------------------------------------------------------------------------


def in_a_while(w, x, key):
    return jax.lax.while_loop(lambda i: i < 1, lambda i: i + learn.sample(w, key), 0).astype(float) * x


@jax.custom_jvp
def ruled(w, key):
    return learn.sample(w, key).astype(float)


ruled.defjvp(lambda p, t: (ruled(*p), t[0].sum()))


class Deep(ember.Operator):
    """A draw that stands in a branch with calls, in an attempt."""

    w: Vector

    def forward(self, x: Number, key: ember.Key) -> Number:
        further = lambda: price(learn.sample(self.w, key), x) + price(0, x)
        return jax.lax.cond(price(0, x) > 0, further, lambda: x)


@pytest.mark.parametrize(
    ("refused", "settings", "message"),
    [
        (in_a_while, {}, r"`jax\.lax\.while_loop`(?s:.*)jax\.lax\.scan"),
        (lambda w, x, key: ruled(w, key) * x, {}, r"`custom_jvp_call`(?s:.*)jax\.random\.categorical"),
        (lambda w, x, key: jax.grad(Router(w))(x, key), {}, "differentiated"),
        (lambda w, x, key: ember.attempt(Deep(w))(x, key)[0], {}, "`cond` inside `ember.attempt`.*Draw before the"),
        (
            lambda w, x, key: ember.attempt(jax.vmap(Router(w)))(x[None], key[None])[0][0],
            {},
            "several lanes of Router inside `ember.attempt`",
        ),
        (
            lambda w, x, key: jax.vmap(Router(w))(x[None], key[None])[0],
            {"estimator": "enumerate"},
            r"`jax\.vmap`(?s:.*)estimator='score'",
        ),
        (
            lambda w, x, key: jax.lax.scan(lambda c, k: (c + learn.sample(w, k), 0), 0, jax.random.split(key, 8))[0],
            {"estimator": "enumerate"},
            "6,561 ways",
        ),
    ],
)
def test_draws_without_a_gradient_are_refused(refused, settings, message):
    refused = lambda w, x, key, refused=refused: jnp.asarray(refused(w, x, key), jnp.float32)
    with pytest.raises(ember.errors.GradientError, match=message):
        learn.value_and_grad(refused, **settings)(W, (XS,), KEY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"baseline": "loo"}, "samples=2 or more"),
        ({"samples": 2, "baseline": "mean"}, "baseline='mean'"),
        ({"estimator": "pathwise"}, "estimator='pathwise'"),
        ({"estimator": "enumerate", "samples": 2, "baseline": "loo"}, "leave out baseline="),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        learn.value_and_grad(of_table, **settings)


@pytest.mark.parametrize(
    ("batch", "key", "error", "message"),
    [
        (XS, KEY, TypeError, "takes its batch as a tuple"),
        ((XS[:0],), KEY, ValueError, "length 1 or more"),
        ((XS, jnp.ones(3)), KEY, ValueError, r"\[\(2,\), \(3,\)\]"),
        ((XS, 1.0), KEY, ValueError, r"\[\(\), \(2,\)\]"),
        ((ember.text("one question"),), KEY, ValueError, r"\[\(\)\]"),
        ((["one question"],), KEY, ValueError, r"a list of strings is `ember.text"),
        ((), KEY, ValueError, "leading axis of examples"),
        ((XS,), jax.random.split(KEY), TypeError, "not one key"),
    ],
)
def test_a_batch_and_its_key_are_checked(batch, key, error, message):
    with pytest.raises(error, match=message):
        learn.value_and_grad(of_table)(W, batch, key)


def test_a_loss_is_a_float_of_rank_0():
    for wrong in (lambda w, x, key: w, lambda w, x, key: x > 0, lambda w, x, key: (x, x)):
        with pytest.raises(TypeError, match="one float of rank 0"):
            learn.value_and_grad(wrong)(W, (XS,), KEY)


def test_a_baseline_is_a_float_of_rank_0_and_does_not_broadcast():
    for wrong in (lambda w, x: w, lambda w, x: None):
        with pytest.raises(TypeError, match="a baseline returns one float of rank 0"):
            learn.value_and_grad(of_table, baseline=wrong)(W, (XS,), KEY)


@pytest.mark.parametrize(
    ("key", "message"),
    [(0, "0 of type int, not a PRNG key"), (jax.random.split(KEY), "not one key"), (jnp.uint32(3), "a single word")],
)
def test_the_key_of_a_draw_is_checked(key, message):
    with pytest.raises(TypeError, match=f"learn.sample: `key` is .*{message}"):
        learn.sample(jnp.zeros(2), key)


# -- what there is nothing to draw from ------------------------------------------------------------------------------

NOTHING = [[0.0, np.nan, 1.0], [-np.inf] * 3]


@pytest.mark.parametrize("logits", NOTHING)
def test_a_draw_from_no_distribution_raises_where_it_is_known(logits):
    logits = jnp.array(logits)
    with pytest.raises(ValueError, match=r"something can be drawn from, not .*(nan|inf)"):
        learn.sample(logits, KEY)
    with pytest.raises(ValueError, match="something can be drawn from"):  # a constant of a program
        jax.jit(lambda key: learn.sample(logits, key))(KEY)
    assert learn.sample(jnp.array([-jnp.inf, 0.0, -jnp.inf]), KEY) == 1
    assert learn.sample(jnp.array([0.0, jnp.inf, 0.0]), KEY) == 1


@pytest.mark.parametrize("how", [{}, {"samples": 3}, {"estimator": "enumerate"}])
@pytest.mark.parametrize("logits", [*NOTHING, [0.0, np.inf, 1.0]])
def test_and_inside_a_program_makes_the_loss_and_its_gradient_unknown(logits, how):
    step = jax.jit(learn.value_and_grad(of_table, **how))
    value, grads = step(jnp.array(logits), (jnp.ones(2),), KEY)
    assert np.isnan(value) and np.isnan(grads).any()
    value, grads = step(jnp.array([0.0, -1.0, 1.0]), (jnp.ones(2),), KEY)
    assert np.isfinite(value) and np.isfinite(grads).all()


# -- choices that mix ------------------------------------------------------------------------------------------------


def test_straight_through_is_hard_forward_and_soft_backward():
    keys = jax.random.split(KEY, 50)
    hard = jax.vmap(learn.straight_through, (None, 0))(W, keys)
    drawn = jax.vmap(learn.sample, (None, 0))(W, keys)
    np.testing.assert_array_equal(hard, jax.nn.one_hot(drawn, 3))
    along = jnp.array([1.0, -2.0, 0.5])
    slope = jax.jit(jax.grad(lambda w: learn.straight_through(w, KEY) @ along))(W)
    np.testing.assert_allclose(slope, jax.grad(lambda w: jax.nn.softmax(w) @ along)(W), rtol=1e-6)


def test_gumbel_softmax_comes_close_to_the_draw_as_it_cools():
    keys = jax.random.split(KEY, 50)
    drawn = jax.vmap(learn.sample, (None, 0))(W, keys)
    warm, cold = (jax.vmap(learn.gumbel_softmax, (None, 0, None))(W, keys, t) for t in (5.0, 1e-3))
    np.testing.assert_array_equal(warm.argmax(-1), drawn)
    np.testing.assert_allclose(warm.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(cold, jax.nn.one_hot(drawn, 3), atol=1e-3)
    noise = jax.random.gumbel(KEY, (3,))
    wanted = jax.jacobian(lambda w: jax.nn.softmax((w + noise) / 0.7))(W)
    np.testing.assert_allclose(jax.jacobian(lambda w: learn.gumbel_softmax(w, KEY, 0.7))(W), wanted, rtol=1e-5)


# -- what an epoch pays ----------------------------------------------------------------------------------------------


ASKED = ember.text([f"What is {i} + {i}?" for i in range(20)])
GOLDS = ember.text([str(2 * i) for i in range(20)])


class Route(ember.Operator):
    """Hands its key to its members, as a router does."""

    w: Float[Array, "2"]
    small: ember.LLM
    large: ember.LLM

    def forward(self, question: ember.Text, key: ember.Key) -> ember.Text:
        up = learn.sample(self.w, jax.random.fold_in(key, 1))
        return jax.lax.cond(up == 1, lambda: self.large(question, key), lambda: self.small(question, key))


def route():
    return Route(jnp.zeros(2), ember.LLM("sim/small", temperature=0.7), ember.LLM("sim/large", temperature=0.7))


def wrong(op, question, gold, key):
    return (op(question, key) != gold).astype(float)


def epochs(count, keys=jax.random.key, order=lambda i: np.arange(20), **settings):
    """The requests of each epoch, and the decisions that were taken in it."""
    step, paid, gradients = eqx.filter_jit(learn.value_and_grad(wrong, samples=2, **settings)), [], []
    with ember.session() as run:
        for i in range(count):
            before = run.report()
            _, grads = step(route(), (ASKED[order(i)], GOLDS[order(i)]), keys(i))
            paid.append((run.report() - before).requests)
            gradients.append(np.asarray(grads.w))
    return paid, gradients


@pytest.mark.parametrize("keys", [jax.random.key, jax.random.PRNGKey, lambda i: jax.random.key(i, impl="rbg")])
def test_epochs_take_other_decisions_and_pay_for_no_sample_twice(keys):
    paid, gradients = epochs(6, keys)
    assert sum(paid) <= 2 * 20 * 2  # both models, for two samples of each question
    assert paid[0] > 0 and len({tuple(g) for g in gradients}) > 1


def test_a_shuffled_batch_asks_for_the_same_samples():
    shuffled = [np.random.default_rng(i).permutation(20) for i in range(6)]
    paid, _ = epochs(6, order=lambda i: shuffled[i])
    assert sum(paid) <= 2 * 20 * 2


def test_fresh_samples_are_paid_for_in_each_epoch():
    paid, _ = epochs(5, fresh=True)
    assert paid == [2 * 20] * 5


def test_both_members_of_an_enumeration_are_paid_for_once():
    step = eqx.filter_jit(learn.value_and_grad(wrong, estimator="enumerate"))
    with ember.session() as run:
        for i in range(5):
            step(route(), (ASKED, GOLDS), jax.random.key(i))
            assert run.report().requests == 2 * 20


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.arange(3),
        jnp.asarray([1.5, -0.0, 2.0]),
        jnp.asarray([[True, False], [False, False], [True, True]]),
        jnp.asarray([1j, 2j, 3.0]),
        jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16),
        jax.random.split(jax.random.key(0), 3),
        ember.text(["a", "b", "c"]),
    ],
)
def test_examples_of_any_type_have_keys_of_their_own(leaf):
    def loss(op, x, key):
        return op * jax.random.uniform(key)

    step = learn.value_and_grad(loss, samples=2)
    each = [step(jnp.float32(1), (leaf[i : i + 1],), KEY)[0].item() for i in range(3)]
    assert len(set(each)) == 3
    assert step(jnp.float32(1), (leaf,), jax.random.key(9))[0].item() == pytest.approx(np.mean(each), rel=1e-6)
