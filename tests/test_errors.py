"""Every error survives a copy and the way to another process, with its words and attributes."""

import copy
import multiprocessing
import pickle

import pytest

import ember_jax as ember
from ember_jax import errors
from ember_jax.providers.quota import Quota


def subclasses(cls):
    """A class of errors, and all below it that the package defines."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__.startswith("ember_jax"):
            yield from subclasses(below)


class Picky(Exception):
    """Somebody's error that can be pickled, and not be unpickled."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")


def sweep(*causes):
    return errors.SweepError([errors.LaneFailure((i, 2), "op", cause) for i, cause in enumerate(causes)], 5)


SPENT = errors.BudgetError("spent.", cap=1.0, spent=0.75, reserved=0.125, worst=0.5)
HTTP = {"status": 503, "retry_after": 2.0, "quota": Quota(), "was_sent": False}
MADE = {
    errors.NotationError: [errors.NotationError("what?", "2E@a | ?", 7), errors.NotationError("no name")],
    errors.BudgetError: [SPENT],
    errors.InternalError: [errors.InternalError("ours", KeyError("k")), errors.InternalError("ours")],
    errors.SweepError: [sweep(SPENT, errors.ServerError("down", status=500)), sweep(KeyError("k"))],
    **{cls: [cls("said", **HTTP), cls("said")] for cls in subclasses(errors.ProviderError)},
}
ALL = [error for cls in subclasses(errors.EmberError) for error in MADE.get(cls) or [cls("what", "and why"), cls()]]


def facts(error):
    """What an error says, and what it holds."""
    held = {name: value for name, value in vars(error).items() if name != "failures"}
    failures = [(f.lane, f.scope, facts(f.cause)) for f in getattr(error, "failures", ())]
    return type(error), str(error), error.args, repr(held), failures


WAYS = {
    **{f"pickle {p}": lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_comes_through_whole(error, way):
    assert facts(WAYS[way](error)) == facts(error)


def test_notes_come_along():
    error = sweep(ValueError("x"))
    error.add_note("seen on Monday")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen on Monday"]


def test_a_cause_that_cannot_be_unpickled_leaves_its_words():
    class Local(Exception):
        """Known in this function only."""

    error = sweep(Picky(code=3), Local("here"), ValueError("fine"))
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert [facts(f.cause)[:2] for f in back.failures] == [
        (errors.ForeignError, "Picky: code 3"),
        (errors.ForeignError, "Local: here"),
        (ValueError, "fine"),
    ]
    assert [f.cause for f in copy.deepcopy(error).failures] == [f.cause for f in error.failures]


def test_no_key_is_pickled_with_an_error():
    key = "sk-marked-0123456789"
    with ember.testing.ChatServer(faults=lambda i: ember.testing.Fault(status=401)) as server:
        provider = ember.providers.OpenAI(base_url=server.base_url, api_key=key)
        session = ember.session(providers={"openai": provider}, retry=ember.Retry(1), journal=None)
        with session, pytest.raises(errors.AuthenticationError) as raised:
            ember.LLM("openai/gpt")(ember.text("q"))
    assert key.encode() not in pickle.dumps(sweep(raised.value))


def _refuse(_):
    raise sweep(SPENT, Picky(code=4))


def test_a_pool_of_processes_hands_an_error_over():
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(errors.SweepError) as raised:
        pool.map_async(_refuse, [0]).get(60)
    assert str(raised.value) == str(sweep(SPENT, Picky(code=4)))
