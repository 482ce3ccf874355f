"""What was replaced, ended or forgotten leaves nothing open; what is on its way through it ends first."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time

import jax
import pytest

import ember_jax as ember
from ember_jax._runtime import dropping
from ember_jax._runtime import session as sessions
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.testing import ChatServer

PATIENCE = 60.0
PRICES = {"dropped": ember.Price(1.0, 1.0)}
QUESTIONS = ember.text([f"question {i}" for i in range(20)])


def sockets():
    """How many sockets this process has open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except OSError:  # that of the listing itself
            continue
    return found


def until(is_so):
    """Waits until something that is under way in another thread has come about."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def asks():
    return jax.block_until_ready(jax.vmap(ember.jit(ember.LLM("dropped/m")))(QUESTIONS))


def session(**settings):
    return ember.session(journal=None, prices=PRICES, **settings)


@pytest.fixture
def server():
    ember.register("dropped", Callable(lambda request: "x"))  # starts the loop, which has sockets of its own
    with session():
        asks()
    with ChatServer() as server:
        yield server


def test_of_a_name_that_is_registered_anew_only_the_last_providers_connections_are_open(server):
    before = sockets()
    for _ in range(5):
        with session():
            ember.register("dropped", OpenAI(server.base_url, api_key=""))
            asks()
    gc.collect()
    until(lambda: sockets() <= before + 2 * len(QUESTIONS))  # this process has both ends
    ember.register("dropped", Callable(lambda request: "x"))
    until(lambda: sockets() == before)
    assert len(server.requests) == 100


def test_a_provider_that_is_replaced_within_a_session_and_kept_by_its_maker_is_closed_too(server):
    before, kept = sockets(), OpenAI(server.base_url, api_key="")
    with session():
        ember.register("dropped", kept)
        asks()
        assert sockets() > before
        ember.register("dropped", Callable(lambda request: "x"))
        until(lambda: sockets() == before)
        ember.register("dropped", kept)  # it may be used again
        asks()
    ember.register("dropped", Callable(lambda request: "x"))
    until(lambda: sockets() == before)
    assert len(server.requests) == 40


def test_a_session_that_has_ended_leaves_no_connection(server):
    before = sockets()
    for _ in range(3):
        with session(providers={"dropped": OpenAI(server.base_url, api_key="")}):
            asks()
    until(lambda: sockets() == before)


def test_a_provider_that_nobody_has_any_more_closes_its_connections(server):
    before, provider = sockets(), OpenAI(server.base_url, api_key="")
    asked = Request("dropped", "m", (Message("user", "x"),))
    sessions.loop().submit(provider.complete(asked)).result(PATIENCE)
    assert sockets() == before + 2
    del provider
    gc.collect()
    until(lambda: sockets() == before)


# -- calls on their way ----------------------------------------------------------------------------------------------


def test_lanes_that_wait_for_a_provider_that_is_replaced_are_answered_by_it():
    def replaced(number):
        if number == 0:
            ember.register("dropped", Callable(lambda request: "another"))

    with ChatServer(faults=replaced) as server:
        before = sockets()
        ember.register("dropped", OpenAI(server.base_url, api_key=""))
        with session(limits={"dropped": ember.Limit(in_flight=4)}) as run:
            answers = asks().tolist()
            assert "another" not in answers and len(server.requests) == run.report().requests == 20
            until(lambda: sockets() == before)
            assert set(asks().tolist()) == {"another"} and len(server.requests) == 20


class Abrupt(Provider):
    """A provider whose calls fail if it is closed while they are on their way."""

    def __init__(self):
        self.on_their_way, self.closed, self.go_on = 0, 0, threading.Event()

    def check(self, model):
        pass

    async def complete(self, request):
        self.on_their_way += 1
        while not self.go_on.is_set():
            await asyncio.sleep(0.001)
        assert not self.closed
        self.on_their_way -= 1
        return Response("mine", 1, 1)

    async def close(self):
        assert not self.on_their_way
        self.closed += 1


@pytest.mark.parametrize("ends", ["replaced", "session"])
def test_a_provider_of_ones_own_is_closed_once_when_its_last_call_has_ended(ends):
    provider = Abrupt()
    run = sessions.Session(None, {"dropped": provider} if ends == "session" else {}, prices=PRICES)
    ember.register("dropped", provider if ends == "replaced" else Callable(lambda request: "x"))
    requests = [Request("dropped", "m", (Message("user", str(i)),)) for i in range(3)]
    calls = [sessions.loop().submit(run.ask(request)) for request in requests]
    until(lambda: provider.on_their_way == 3)
    if ends == "replaced":
        ember.register("dropped", Callable(lambda request: "x"))
    else:
        run.close()
    provider.go_on.set()
    answers = [call.result(PATIENCE).text for call in calls]
    until(lambda: provider.closed)
    sessions.loop().submit(dropping.all_closed()).result(PATIENCE)
    assert answers == ["mine"] * 3 and provider.closed == 1 and not dropping._calls and not dropping._dropped


def test_a_provider_that_another_name_stands_for_is_not_closed():
    provider, call = Abrupt(), Request("also", "m", (Message("user", "x"),))
    provider.go_on.set()
    for name in ("dropped", "also"):
        ember.register(name, provider)
    ember.register("dropped", Callable(lambda request: "x"))
    with ember.session(journal=None, prices={"also": ember.Price(1.0, 1.0)}) as run:
        assert sessions.loop().submit(run.ask(call)).result(PATIENCE).text == "mine"
    assert not provider.closed
    ember.register("also", Callable(lambda request: "x"))
    until(lambda: provider.closed == 1)


# -- journals --------------------------------------------------------------------------------------------------------


def open_files(path):
    found = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [name for name in found if os.path.lexists(name) and os.readlink(name).startswith(str(path))]


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "ember-journal"]


def test_a_journal_that_nobody_has_any_more_closes_its_file_and_ends_its_thread(tmp_path):
    path = tmp_path / "run.db"
    ember.register("dropped", Callable(lambda request: "x"))
    before, journal = len(writers()), ember.Journal(path)
    with ember.session(journal=journal, prices=PRICES) as run:
        asks()
    assert open_files(path) and len(writers()) == before + 1
    del journal, run
    gc.collect()
    until(lambda: not open_files(path) and len(writers()) == before)
    with ember.session(journal=path, prices=PRICES) as run:
        asks()
    assert run.report().replayed == 20 and not open_files(path)


SCRIPT = """
    import sys
    import jax
    import ember_jax as ember
    from ember_jax.providers.base import Message, Request
    from ember_jax._runtime import session as sessions
    from ember_jax.testing import ChatServer

    server = ChatServer().__enter__()
    make = lambda: ember.providers.OpenAI(server.base_url, api_key="")
    alone, journal = make(), ember.Journal(sys.argv[1])
    sessions.loop().submit(alone.complete(Request("dropped", "m", (Message("user", "x"),)))).result(60)
    for _ in range(3):
        ember.register("dropped", make())
        with ember.session(journal=journal, prices={"dropped": ember.Price(1.0, 1.0)}):
            print(ember.LLM("dropped/m")("x") == "x")
"""


def test_a_process_that_ends_without_order_is_warned_of_nothing(tmp_path):
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", textwrap.dedent(SCRIPT), str(tmp_path / "run.db")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 3
