"""When calls start: in virtual time, where a quota has a closed form; and against servers with a token bucket.

Times that have a closed form are met to a microsecond: they are sums of durations that are no binary fractions.
"""

import asyncio
import contextlib
import itertools
import math
import random
import threading
import time

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ember_jax as ember
from ember_jax import Limit, Price, testing
from ember_jax._runtime.budget import Budget
from ember_jax._runtime.gate import Limiter
from ember_jax._runtime.loop import get_loop
from ember_jax._runtime.pricing import Pricing
from ember_jax._runtime.probe import Probe
from ember_jax._runtime.retry import Retry
from ember_jax._runtime.sending import Sender
from ember_jax.errors import ModelError, RateLimitError
from ember_jax.providers import quota
from ember_jax.providers.base import Message, Provider, Request, Response
from ember_jax.providers.callable import Callable
from ember_jax.providers.openai import OpenAI
from ember_jax.providers.quota import Allowance, Quota
from ember_jax.providers.sim import Sim
from ember_jax.testing import VirtualClock

HANG = 60.0  # real seconds after which a test has failed; none waits for it


def virtually(coroutine):
    """Runs a coroutine function from virtual time 0."""
    with VirtualClock():
        return get_loop().submit(coroutine()).result(HANG)


def clock():
    return asyncio.get_running_loop().time()


def about(times):
    return pytest.approx(times, abs=1e-6)


def limiter(limits=None, **limit):
    return Limiter(limits or ({"p": Limit(**limit)} if limit else {}), asyncio.get_running_loop())


async def call(gate, seconds=0.0, cost=0.0, used=None, told=None, **order):
    """One call through a gate; when it began."""
    admission = await gate.enter(cost, **order)
    began = clock()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        gate.abandoned(admission)
        raise
    gate.succeeded(admission, used, told)
    return began


def begins(n, seconds=0.0, costs=None, used=None, **limit):
    """When `n` calls that come at once begin."""

    async def scenario():
        gate = limiter(**limit).gate("p", "m", True)
        at = [call(gate, seconds, costs[i] if costs else 0.0, used[i] if used else None) for i in range(n)]
        return await asyncio.gather(*at)

    return virtually(scenario)


# -- quotas that are given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rpm", [0.5, 3, 60, 120])
def test_a_low_quota_is_paced_evenly(rpm):
    assert begins(7, rpm=rpm) == about([k * 60 / rpm for k in range(7)])


@pytest.mark.parametrize("rpm", [600, 1200, 60_000])
def test_half_a_seconds_worth_may_come_at_once_and_the_rest_makes_up_for_it(rpm):
    burst = rpm / 120
    rate = (rpm - burst + 1) / 60
    assert begins(400, rpm=rpm) == about([max(0, (k + 1 - burst) / rate) for k in range(400)])


def test_tokens_are_paced_by_their_number():
    costs = [100, 400, 300, 500, 7, 250] * 10
    rate = (60_000 - 500 + 1) / 60
    totals = itertools.accumulate(costs)
    assert begins(60, costs=costs, tpm=60_000) == about([max(0, (total - 500) / rate) for total in totals])


def test_what_costs_more_than_a_burst_waits_until_nothing_is_owed():
    rate = (60_000 - 500 + 1) / 60
    # The third begins when the first two thousand have been paid down to a full bucket.
    assert begins(3, costs=[500, 2000, 600], tpm=60_000) == about([0, 500 / rate, 2500 / rate])


def test_tokens_are_corrected_by_what_was_used():
    rate = (60_000 - 500 + 1) / 60
    over = begins(3, costs=[500] * 3, used=[900, 500, 500], tpm=60_000)
    under = begins(3, costs=[500] * 3, used=[100, 500, 500], tpm=60_000)
    assert over == about([0, 900 / rate, 1400 / rate])
    assert under == about([0, 100 / rate, 600 / rate])


def test_the_tighter_of_two_quotas_paces():
    assert begins(30, costs=[1.0] * 30, rpm=60, tpm=60_000) == begins(30, rpm=60)
    assert begins(30, costs=[400.0] * 30, rpm=6e6, tpm=60_000) == begins(30, costs=[400.0] * 30, tpm=60_000)


def by_level(arrivals, quota, costs):
    """When calls begin by a bucket whose level is followed step by step, first come first served."""
    burst = max(1.0, quota / 120)
    rate = (quota - burst + 1) / 60
    level, at, began = burst, 0.0, []
    for arrival, cost in zip(arrivals, costs, strict=True):
        now = max(arrival, at)
        level = min(burst, level + rate * (now - at))
        wait = max(0.0, (min(cost, burst) - level) / rate)
        level, at = level + rate * wait - cost, now + wait
        began.append(at)
    return began


def exceeds(began, costs, window, most):
    """Whether the calls that begin within some window take more than `most`: every window that begins with a call."""
    for i, start in enumerate(began):
        inside = sum(c for t, c in zip(began[i:], costs[i:], strict=True) if t < start + window - 1e-6)
        if inside > most + 1e-6:
            return True
    return False


GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3, 5.0]), min_size=1, max_size=80)


@given(GAPS, st.sampled_from([30, 240, 1200, 6000]), st.data())
def test_no_window_of_any_length_exceeds_a_quota(gaps, per_minute, data):
    arrivals = list(itertools.accumulate(gaps))
    burst = max(1.0, per_minute / 120)
    is_tokens = data.draw(st.booleans())
    sizes = st.floats(0.1, burst) if is_tokens else st.just(1.0)
    costs = data.draw(st.lists(sizes, min_size=len(gaps), max_size=len(gaps)))

    async def scenario():
        gate = limiter(**{"tpm" if is_tokens else "rpm": per_minute}).gate("p", "m", True)

        async def arrive(at, cost):
            await asyncio.sleep(at)
            return await call(gate, 0.0, cost)

        return await asyncio.gather(*map(arrive, arrivals, costs))

    began = virtually(scenario)
    assert began == about(by_level(arrivals, per_minute, costs))
    for window in (0.05, 0.5, 1.0, 7.0, 60.0, 600.0):
        assert not exceeds(began, costs, window, burst + per_minute / 60 * window)
    assert not exceeds(began, costs, 60.0, per_minute + (1 if is_tokens else 0))


# -- slots -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 20))
def test_slots_are_never_exceeded_and_never_idle_while_calls_wait(ticks, slots):
    seconds = [t / 64 for t in ticks]
    running, most = 0, 0

    async def scenario():
        nonlocal running, most
        # Of a local model, as the slots of a service are filled slowly: what it allows is still to be found out.
        gate = limiter(in_flight=slots).gate("p", "m", True)

        async def one(duration):
            nonlocal running, most
            admission = await gate.enter()
            running += 1
            most = max(most, running)
            await asyncio.sleep(duration)
            running -= 1
            gate.succeeded(admission, None, None)

        await asyncio.gather(*map(one, seconds))
        assert gate.statistics().most_in_flight == most
        return clock()

    makespan = virtually(scenario)
    assert most == min(slots, len(seconds))
    # R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    assert makespan <= sum(seconds) / slots + (1 - 1 / slots) * max(seconds) + 1e-9


def test_a_call_that_waits_for_a_slot_leaves_the_quota_alone():
    # Two slots of one second each are the bottleneck; nothing is lost of the pace meanwhile.
    assert begins(6, 1.0, rpm=6000, in_flight=2) == about([0, 0, 1, 1, 2, 2])


# -- whose turn it is ------------------------------------------------------------------------------------------------


def test_first_come_first_served_and_lower_priority_before():
    async def scenario():
        gate, order = limiter(rpm=60).gate("p", "m", True), []

        async def one(name, priority):
            await call(gate, priority=priority)
            order.append(name)

        await asyncio.gather(*(one(*each) for each in [("a", 0), ("b", 1), ("c", 0), ("d", -1), ("e", 1), ("f", 0)]))
        return order

    # The first finds nobody before it.
    assert "".join(virtually(scenario)) == "adcfbe"


def test_who_tries_again_has_its_old_turn():
    async def scenario():
        gate, order = limiter(in_flight=1).gate("p", "m", True), []

        async def one(name, fails=False):
            admission = await gate.enter()
            await asyncio.sleep(1)
            if fails:
                gate.failed(admission, False, None, None)
                admission = await gate.enter(turn=admission.turn)
            order.append(name)
            gate.succeeded(admission, None, None)

        await asyncio.gather(one("a", fails=True), one("b"), one("c"), one("d"))
        return order

    # While it is gone its slot goes to the next, and then it goes before those who came later.
    assert "".join(virtually(scenario)) == "bacd"


def test_the_most_specific_limit_counts_and_a_providers_is_shared():
    limits = {"p": Limit(rpm=60), "p/own": Limit(rpm=120), "q/m": Limit(rpm=30)}

    async def scenario():
        gates = limiter(limits)
        of = lambda provider, model, n: [call(gates.gate(provider, model, True)) for _ in range(n)]
        calls = of("p", "a", 2), of("p", "b", 2), of("p", "own", 3), of("q", "m", 2), of("q", "other", 3)
        return [sorted(await asyncio.gather(*each)) for each in await gather_nested(calls)]

    async def gather_nested(calls):
        tasks = [[asyncio.ensure_future(c) for c in each] for each in calls]
        await asyncio.gather(*itertools.chain(*tasks))
        return tasks

    a, b, own, m, other = virtually(scenario)
    assert (a, b) == (about([0, 1]), about([2, 3]))
    assert own == about([0, 0.5, 1.0])
    assert m == about([0, 2])
    assert other == [0, 0, 0]


def test_a_model_that_waits_does_not_hold_up_the_others_of_its_provider():
    async def scenario():
        gates = limiter(rpm=60)
        a, b = gates.gate("p", "a", True), gates.gate("p", "b", True)
        a.failed(await a.enter(), True, 10.0, None)
        return await asyncio.gather(call(a), call(b), call(b))

    assert virtually(scenario) == about([10, 1, 2])


def test_retry_after_holds_all_calls_of_the_model_and_no_slot():
    async def scenario():
        gate = limiter(in_flight=4).gate("p", "m", True)
        gate.failed(await gate.enter(), True, 2.0, None)
        waiting = [asyncio.ensure_future(call(gate)) for _ in range(3)]
        await asyncio.sleep(1)
        assert (gate.statistics().in_flight, gate.statistics().waiting) == (0, 3)
        return await asyncio.gather(*waiting)

    assert virtually(scenario) == [2.0, 2.0, 2.0]


@given(st.sets(st.integers(0, 39)))
def test_who_is_cancelled_while_waiting_leaves_nothing_behind(cancelled):
    async def scenario():
        gate = limiter(rpm=60).gate("p", "m", True)
        await call(gate)
        tasks = [asyncio.ensure_future(call(gate)) for _ in range(40)]
        await asyncio.sleep(0)
        for i in cancelled:
            tasks[i].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        stats = gate.statistics()
        assert (stats.waiting, stats.in_flight, stats.admitted) == (0, 0, 41 - len(cancelled))
        return [d for d in done if not isinstance(d, asyncio.CancelledError)]

    assert virtually(scenario) == about([k + 1 for k in range(40 - len(cancelled))])


def test_who_is_cancelled_before_it_heard_that_it_may_begin_gives_everything_back():
    async def scenario():
        gate = limiter(rpm=60, in_flight=1).gate("p", "m", True)
        first = await gate.enter()
        second, third = (asyncio.ensure_future(call(gate)) for _ in range(2))
        await asyncio.sleep(5)
        gate.succeeded(first, None, None)  # admits the second
        second.cancel()
        began = await third
        assert second.cancelled()
        return began

    assert virtually(scenario) == 5.0  # and not a second later


def test_who_is_cancelled_just_when_it_may_begin_gives_its_share_of_a_told_quota_back():
    async def scenario():
        gate = limiter(in_flight=1).gate("p", "m", True)
        first = await gate.enter()
        tasks = [asyncio.ensure_future(call(gate)) for _ in range(3)]
        await asyncio.sleep(5)
        # Two are left: for the second, which is cancelled, and so for the third and the fourth.
        gate.succeeded(first, None, Quota(Allowance(60, 2, 58.0)))
        tasks[0].cancel()
        return [await task for task in tasks[1:]]

    assert virtually(scenario) == about([5.0, 6.0])  # spread over the minute, and no later


def test_who_is_cancelled_just_when_it_may_begin_proves_nothing_and_takes_no_pace():
    async def scenario():
        probe = Probe(1000)
        for k in range(40):
            probe.take(k / 20)
        probe.succeeded(1.0, 0.5, 20)
        probe.refused(2.0, 1.95, 2.0, False)
        pace, due = probe.rate(2.0), probe.ready(0, False)
        probe.take(2.0)
        after = probe.ready(0, False)
        probe.give_back(2.0, 2.0)
        return pace, due, after, probe.ready(0, False)

    pace, due, after, back = virtually(scenario)
    assert pace < math.inf and after > due
    assert back == pytest.approx(after - 1 / pace)


def test_who_is_cancelled_in_flight_frees_its_slot():
    async def scenario():
        gate = limiter(in_flight=1).gate("p", "m", True)

        async def forever():
            admission = await gate.enter()
            try:
                await asyncio.Event().wait()
            finally:
                gate.abandoned(admission)

        first = asyncio.ensure_future(forever())
        second = asyncio.ensure_future(call(gate))
        await asyncio.sleep(1)
        first.cancel()
        return await second

    assert virtually(scenario) == 1.0


def test_there_is_one_timer_however_many_wait():
    async def scenario():
        loop = asyncio.get_running_loop()
        gate = limiter(rpm=60_000).gate("p", "m", True)
        tasks = [asyncio.ensure_future(call(gate)) for _ in range(16_000)]
        await asyncio.sleep(0)
        timers, call_at = [], loop.call_at
        loop.call_at = lambda when, *args, **settings: timers.append(when) or call_at(when, *args, **settings)
        await asyncio.gather(*tasks)
        return timers

    timers = virtually(scenario)
    assert timers == sorted(timers)
    assert len(timers) <= 16_000, "one for each turn, and none for those who wait behind"


def test_statistics():
    async def scenario():
        gates = limiter(rpm=60, in_flight=2)
        gate = gates.gate("p", "m", True)
        tasks = [asyncio.ensure_future(call(gate, 1.5, 10.0, 12.0)) for _ in range(4)]
        await asyncio.sleep(1.25)
        during = gate.statistics()
        await asyncio.gather(*tasks)
        gate.failed(await gate.enter(5.0), True, None, None)
        assert gates.statistics() == {"p/m": gate.statistics()}
        return during, gate.statistics()

    during, after = virtually(scenario)
    assert (during.waiting, during.in_flight, during.most_in_flight, during.admitted) == (2, 2, 2, 2)
    assert (during.tokens, during.rate) == (20.0, 1.0)
    assert (after.waiting, after.in_flight, after.admitted, after.throttled, after.tokens) == (0, 0, 5, 1, 53.0)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "60"])
@pytest.mark.parametrize("name", ["rpm", "tpm", "in_flight"])
def test_a_limit_is_a_positive_number(name, value):
    with pytest.raises(ValueError, match=rf"Limit\({name}="):
        Limit(**{name: value})


def test_calls_in_flight_are_whole():
    with pytest.raises(ValueError, match="whole number"):
        Limit(in_flight=2.5)


# -- what a service says ---------------------------------------------------------------------------------------------


def openai_headers(limit, left, reset, what="requests"):
    return {
        f"x-ratelimit-limit-{what}": limit,
        f"x-ratelimit-remaining-{what}": left,
        f"x-ratelimit-reset-{what}": reset,
    }


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("17ms", 0.017),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("0s", 0.0),
        ("0.25", 0.25),
        ("1970-01-01T00:01:40Z", 40.0),
        ("1970-01-01T00:01:40.5+00:00", 40.5),
        ("1970-01-01T00:00:00Z", 0.0),
    ],
)
def test_resets_in_every_form(words, seconds):
    said = quota.read(openai_headers("60", "59", words), lambda: 60.0)
    assert said == Quota(Allowance(60, 59, pytest.approx(seconds)), None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        openai_headers("60", "59", "soon"),
        openai_headers("60", "", "1s"),
        openai_headers("0", "0", "1s"),
        openai_headers("nan", "1", "1s"),
        openai_headers("inf", "1", "1s"),
        openai_headers("60", "-1", "1s"),
        openai_headers("60", "1", "s1"),
        {"x-ratelimit-limit-requests": "60"},
    ],
)
def test_what_makes_no_sense_says_nothing(headers):
    assert quota.read(headers, time.time) is None


def test_both_vendors_headers_are_read():
    said = quota.read(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2024-05-01T00:00:02Z",
            **openai_headers("150000", "149984", "6ms", "tokens"),
        },
        lambda: 1714521600.0,
    )
    assert said == Quota(Allowance(50, 49, 2.0), Allowance(150_000, 149_984, 0.006))


def test_headers_that_came_twice_are_read_once():
    twice = {name: f"{value}, {value}" for name, value in openai_headers("60", "59", "1m30s").items()}
    assert quota.read(twice, time.time) == Quota(Allowance(60, 59, 90.0), None)


def test_quotas_come_with_answers_and_with_errors():
    said = {**openai_headers("60", "7", "1s"), "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    asked = request()
    body = b'{"choices": [{"message": {"content": "yes"}}]}'
    assert OpenAI(api_key="").read(200, said, body, asked).quota == Quota(Allowance(60, 7, 1.0))
    assert OpenAI(api_key="").read(200, {}, body, asked).quota is None
    with pytest.raises(RateLimitError) as caught:
        OpenAI(api_key="").read(429, said, b"", asked)
    assert caught.value.quota == Quota(Allowance(60, 7, 1.0))


def test_calls_are_paced_as_the_service_fills_its_quota():
    async def scenario():
        gate = limiter().gate("p", "m", False)
        await call(gate, told=Quota(Allowance(60, 59, 1.0)))  # much is left, and one comes back per second
        return await asyncio.gather(*(call(gate, 100.0) for _ in range(8)))

    assert virtually(scenario) == about(range(8))


def test_no_more_is_sent_than_was_left():
    async def scenario():
        gate = limiter().gate("p", "m", False)
        await call(gate, told=Quota(Allowance(20, 19, 0.05)))
        await call(gate, told=Quota(Allowance(20, 2, 0.9)))  # somebody else has sent 16: 20 per second come back
        return await asyncio.gather(*(call(gate, 100.0) for _ in range(40)))

    began = virtually(scenario)
    assert began[:2] == [0, 0]
    for i, at in enumerate(began):
        assert i + 1 <= 2 + 20 * at + 1e-6, "more than were left and have come back"
        assert i + 1 >= 2 + 18 * at - 1e-6 or i < 2, "much less than that"


def test_a_report_is_of_the_time_when_its_call_was_sent():
    async def scenario():
        gate = limiter().gate("p", "m", False)
        early, late = await gate.enter(), await gate.enter()
        gate.succeeded(late, None, Quota(Allowance(10, 0, 600.0)))
        gate.succeeded(early, None, Quota(Allowance(10, 9, 60.0)))  # is news no more
        return await call(gate)

    assert virtually(scenario) > 1


# -- against servers -------------------------------------------------------------------------------------------------


def request(words="hello"):
    return Request("p", "m", (Message("user", words),))


class Bucket(Provider):
    """A service with a token bucket of requests, or of the tokens that a prompt's length says.

    **Arguments:**

    - `tells`: whether its answers say what is left; `limit` is the limit that they name.
    - `refusal`: seconds until it refuses.
    """

    def __init__(self, rate=20.0, burst=20.0, *, by_tokens=False, tells=False, limit=None, refusal=0.0, after=2.0):
        self.rate, self.burst, self.by_tokens, self.tells = rate, burst, by_tokens, tells
        self.limit, self.refusal, self.after = limit or burst, refusal, after
        self.level, self.at = burst, 0.0
        self.refused = self.answered = 0

    def check(self, model):
        pass

    async def complete(self, request):
        words = request.messages[0].content
        self.level, self.at = min(self.burst, self.level + self.rate * (clock() - self.at)), clock()
        size = len(words) // 4 + 10
        takes = size if self.by_tokens else 1
        enough = self.level > takes - 1e-6
        self.level -= takes * enough
        said = Allowance(self.limit, math.floor(max(self.level, 0)), (self.burst - self.level) / self.rate)
        told = (Quota(None, said) if self.by_tokens else Quota(said)) if self.tells else None
        if not enough:
            self.refused += 1
            await asyncio.sleep(self.refusal)
            raise RateLimitError("too many", status=429, retry_after=self.after, quota=told)
        self.answered += 1
        await asyncio.sleep(0.5)
        return Response(words.upper(), input_tokens=size - 10, output_tokens=10, quota=told)

    async def close(self):
        pass


def sweep(server, prompts, **limit):
    """Sends prompts at once: seconds, and the counts of a report."""
    counts = {"requests": 0, "failed": 0, "retries": 0, "throttled": 0}

    def count(name, amount=1):
        counts[name] = counts.get(name, 0) + amount

    async def scenario():
        pricing = Pricing({"p": Price(0, 0)}, lambda name: server, Budget(math.inf))
        sender = Sender(lambda name: server, count, {"p": Limit(**limit)} if limit else {}, Retry(), pricing)
        answers = await asyncio.gather(*(sender.send(request(words), []) for words in prompts))
        assert [a.text for a in answers] == [words.upper() for words in prompts]
        assert not any(a.quota for a in answers)
        return clock()

    seconds = virtually(scenario)
    assert server.answered == len(prompts)
    assert counts["requests"] == server.answered + server.refused
    assert counts["throttled"] == counts["failed"] == counts["retries"] == server.refused
    return seconds


PROMPTS = [f"prompt {i}" for i in range(400)]


def test_four_hundred_prompts_with_the_limit_given():
    server = Bucket()
    assert 19.5 <= sweep(server, PROMPTS, rpm=1200) <= 20.5
    assert server.refused == 0


@pytest.mark.parametrize("limit", [20, 1200])
def test_four_hundred_prompts_with_the_limit_told(limit):
    # Whether the service names its bucket or its quota per minute.
    server = Bucket(tells=True, limit=limit)
    assert 19.5 <= sweep(server, PROMPTS) <= 20.5
    assert server.refused == 0


@pytest.mark.parametrize("refusal", [0.0, 0.05])
def test_four_hundred_prompts_with_nothing_known(refusal):
    server = Bucket(refusal=refusal)
    assert 19.5 <= sweep(server, PROMPTS) <= 23
    assert server.refused <= 10


MIXED = [f"{i} " + "words " * (20, 60, 250)[i * 7919 % 3] for i in range(400)]


@pytest.mark.parametrize("settings", [{"tpm": 120_000}, {}], ids=["given", "told"])
def test_prompts_of_mixed_length_use_a_quota_of_tokens(settings):
    server = Bucket(2000.0, 2000.0, by_tokens=True, tells=not settings)
    seconds = sweep(server, MIXED, **settings)
    tokens = sum(len(words) // 4 + 10 for words in MIXED)
    assert server.refused == 0
    assert tokens >= 0.95 * 2000 * (seconds - 0.5), "95 % of what came in until the last call began"


@pytest.mark.parametrize(("rate", "burst"), [(5.0, 5.0), (20.0, 60.0), (20.0, 1.0), (100.0, 100.0)])
def test_other_buckets_are_found_out_too(rate, burst):
    server = Bucket(rate, burst)
    prompts = PROMPTS[:200]
    # Not well, where a bucket has no room for what slow start begins with; but nothing is lost, and it ends.
    assert sweep(server, prompts) < 5 * 200 / rate + 20
    assert server.refused < 20


@pytest.mark.parametrize("limit", [{}, {"in_flight": 200}])
def test_calls_in_flight_are_a_bound_and_the_pace_is_found_out_all_the_same(limit):
    server = Bucket(8.0, 8.0, after=1.0)
    assert sweep(server, PROMPTS[:230], **limit) < 1.1 * (230 - 8) / 8
    assert server.refused <= 10


class ByChance(Bucket):
    """A service that refuses a share of the calls at any pace, besides those beyond its limit."""

    after = None

    def __init__(self, share, rate=1e9, burst=1e9):
        super().__init__(rate, burst, after=None)
        self.share, self.draw = share, random.Random(0)

    async def complete(self, request):
        if self.draw.random() < self.share:
            self.refused += 1
            await asyncio.sleep(0.5)
            raise RateLimitError("too many", status=429)
        return await super().complete(request)


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_refusals_by_chance_do_not_slow_a_sweep_down_for_long(share):
    """Paced by them it would take a quarter of an hour; a thousand in flight take a second."""
    server = ByChance(share)
    assert sweep(server, [f"prompt {i}" for i in range(2000)]) < 90
    assert server.refused < 3 * share * 2000 + 10


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_a_limit_is_found_behind_refusals_by_chance(rate):
    server = ByChance(0.03, rate, rate)
    assert sweep(server, [f"prompt {i}" for i in range(1000)]) < 3 * 1000 / rate
    assert server.refused < 300


def test_where_nobody_refuses_calls_in_flight_double_up_to_a_thousand():
    async def scenario():
        gate = limiter().gate("p", "m", False)
        await asyncio.gather(*(call(gate, 1.0) for _ in range(12_000)))
        return clock(), gate.statistics().most_in_flight

    seconds, most = virtually(scenario)
    assert most == 1000
    assert seconds < 12_000 / 1000 + math.log2(1000 / 10) + 4


def test_slow_start_begins_with_ten():
    async def scenario():
        gate = limiter().gate("p", "m", False)
        tasks = [asyncio.ensure_future(call(gate, 1.0)) for _ in range(100)]
        await asyncio.sleep(0.5)
        first = gate.statistics().in_flight
        await asyncio.gather(*tasks)
        return first

    assert virtually(scenario) == 10


# -- in a session ----------------------------------------------------------------------------------------------------

ember.register("ours", Callable(lambda request: request.messages[-1].content))
LLM = ember.LLM("ours/model")
ask = ember.jit(lambda prompt: LLM(prompt))


async def second(request):
    await asyncio.sleep(1)
    return request.messages[-1].content


def test_a_sessions_limits_pace_lanes_and_what_is_replayed_takes_no_turn():
    words = [f"w{i}" for i in range(12)]
    limits = {"ours": Limit(rpm=60)}
    with VirtualClock() as time, ember.session(providers={"ours": Callable(second)}, limits=limits) as run:
        assert jax.vmap(ask)(ember.text(words)).tolist() == words
        assert time.now == about(12.0)
        assert jax.vmap(ask)(ember.text(words)).tolist() == words
        assert time.now == about(12.0)
        stats = run.statistics()["ours/model"]
    assert (stats.admitted, stats.in_flight, stats.rate) == (12, 0, 1.0)
    assert (run.report().requests, run.report().replayed, run.report().throttled) == (12, 12, 0)


@pytest.mark.parametrize("provider", [Callable(second), Sim({"model": testing.SimModel(latency=1.0)})])
def test_local_models_have_no_limit_unless_one_is_given(provider):
    words = ember.text([f"w{i}" for i in range(3000)])
    with VirtualClock() as time, ember.session(providers={"ours": provider}) as run:
        jax.vmap(ask)(words).tolist()
        assert time.now == about(1.0)
    assert run.report().requests == 3000


def test_one_session_may_run_on_several_clocks():
    provider = Callable(second)
    with ember.session(providers={"ours": provider}, limits={"ours": Limit(rpm=60)}, journal=None):
        for _ in range(2):
            with VirtualClock() as time:
                jax.vmap(ask)(ember.text(["a", "b", "c"])).tolist()
                assert time.now == about(3.0)


def test_a_limit_that_would_limit_nothing_is_refused():
    with pytest.raises(ModelError, match="no provider 'opnai'"):
        ember.session(limits={"opnai/gpt-4o": Limit(rpm=1)})
    with pytest.raises(TypeError, match="takes a Limit, not int"):
        ember.session(limits={"openai": 60})


class Doorman:
    """The faults of a server with a token bucket, by the real clock."""

    def __init__(self, rate, burst):
        self.rate, self.burst = rate, burst
        self.level, self.at, self.refused = burst, time.monotonic(), 0
        self.lock = threading.Lock()

    def __call__(self, number):
        with self.lock:
            now = time.monotonic()
            self.level, self.at = min(self.burst, self.level + self.rate * (now - self.at)), now
            if self.level >= 1:
                self.level -= 1
                return None
            self.refused += 1
            return testing.Fault(status=429, headers={"retry-after": "0.1"})


def test_a_real_server_sees_its_quota_kept():
    doorman = Doorman(60, 60)
    words = [f"What is {i} + 1?" for i in range(90)]
    llm = ember.LLM("openai/m")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(testing.ChatServer(testing.SimModel(accuracy=1.0), faults=doorman))
        provider = OpenAI(server.base_url, api_key="")
        run = stack.enter_context(
            ember.session(providers={"openai": provider}, limits={"openai/m": Limit(rpm=3600)}, journal=None)
        )
        answers = jax.vmap(ember.jit(lambda p: llm(p)))(ember.text(words)).tolist()
    assert answers == [str(i + 1) for i in range(90)]
    report = run.report()
    assert (report.requests, report.throttled, report.retries, doorman.refused) == (90, 0, 0, 0)
    assert len(server.requests) == 90
