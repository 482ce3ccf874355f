"""What calls cost: prices of one's own, and the table that is installed with `genai_prices`.

Design note. The table's own `calc_price` takes a tenth of a millisecond, which is too long for the event loop. So the
prices of a model are worked out once a second into a few numbers (`_Rates`), and the sum over them is made here. Two
questions are asked of the table:

- What has an answer cost? Its tokens are known, its service tier mostly is, and the hour is that of settlement. The
  result is exact, as far as the table is.
- What may a call cost at most? Nothing of this is known yet. So the dearest of all prices counts that may apply: of the
  tiers that the service may choose, of the hours of the coming day, of the steps that a prompt of this length may
  reach; and each token counts as if it were the dearest of its kind (a cache write may cost more than plain input).

The table ignores a context that it does not know, and answers with the standard price. A faster tier is dearer, so here
the price is then unknown.
"""

import functools
import importlib.metadata
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, NamedTuple

from .base import Request, Tokens

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars for a million tokens.

    **Arguments:**

    - `input`: the price of the prompt's tokens.
    - `output`: the price of the answer's tokens, those of its reasoning among them.
    - `cached`: the price of those of the prompt's tokens that came out of a cache; by default as any others.
    - `cache_write`: the price of those of the prompt's tokens that were written into a cache; likewise.

    It holds for every service tier and every hour.

    **Raises:** `ValueError` for a price that is not a finite number of at least 0.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_left_out = value is None and name in ("cached", "cache_write")
            if not (is_left_out or (isinstance(value, int | float) and 0 <= value < math.inf)):
                raise ValueError(f"Price({name}={value!r}): give US dollars for a million tokens, such as 0.15.")

    def of(self, input_tokens: float, output_tokens: float, cached: float = 0, cache_write: float = 0) -> float:
        """The US dollars of so many tokens, which may be infinite. The last two are parts of the input."""
        return self._rates.of(Tokens(input_tokens, output_tokens, cached, cache_write))

    def most(self, input_tokens: float, output_tokens: float) -> float:
        """The US dollars of so many tokens at most, whatever part of them a cache has to do with."""
        return _dearest_of([self._rates]).of(Tokens(input_tokens, output_tokens))

    @functools.cached_property
    def _rates(self) -> "_Rates":
        cached = self.input if self.cached is None else self.cached
        return _Rates(self.input, self.output, cached, self.input if self.cache_write is None else self.cache_write)


class _Rates(NamedTuple):
    """Prices as numbers: US dollars for a million tokens of each kind, and for one request.

    `above` is the number of input tokens of a request above which they hold, for all of its tokens.
    """

    input: float
    output: float
    cached: float
    cache_write: float
    reasoning: float | None = None
    request: float = 0.0
    above: float = -1
    cache_write_1h: float | None = None

    def of(self, tokens: Tokens) -> float:
        read, written, cached, cache_write, reasoning, for_long = tokens
        dollars = 0.0
        if cached or cache_write:  # some services count more of these than of the input that they are part of
            cached = min(cached, read)
            cache_write = min(cache_write, read - cached)
            read -= cached + cache_write
            for_long = 0 if self.cache_write_1h is None else min(for_long, cache_write)
            dollars += _product(self.cached, cached) + _product(self.cache_write, cache_write - for_long)
            dollars += _product(self.cache_write_1h or 0.0, for_long)
        if reasoning and self.reasoning is not None:
            reasoning = min(reasoning, written)
            written -= reasoning
            dollars += _product(self.reasoning, reasoning)
        return (dollars + _product(self.input, read) + _product(self.output, written)) / 1e6 + self.request


def _product(price: float, count: float) -> float:
    # The product of 0 and infinity would be NaN, but tokens without a price are free in any number.
    return price * count if price and count else 0.0


def _dearest_of(rates: Sequence[_Rates]) -> _Rates:
    """Prices that no request is above, whichever of some hold, and whatever its tokens are."""
    read = max(max(r.input, r.cached, r.cache_write, r.cache_write_1h or 0.0) for r in rates)
    written = max(max(r.output, r.reasoning or 0.0) for r in rates)
    return _Rates(read, written, read, read, None, max(r.request for r in rates))


# -- what an answer has cost, and what a call may cost ---------------------------------------------------------------

# The names that services have for the tier without a price of its own, or for no wish for any.
_STANDARD = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand"})

# What prices depend on besides the model: pairs of a name and a value, as the table has them.
_Context = tuple[tuple[str, str], ...]


def cost(request: Request, tokens: Tokens, model: str = "", tier: str = "") -> float:
    """The US dollars of an answer; NaN if the table has no price for the model, or none for its service tier.

    The table is the one in the installed package, and is never fetched.

    **Arguments:**

    - `request`: what was asked.
    - `tokens`: what is billed; they may be infinite.
    - `model`: the model that answered, if the service says so. If it has no price, as a dated name may not, that of the
        model that was asked for counts.
    - `tier`: the service tier that answered. If the service does not say, it may have ignored a tier that was asked
        for, and the dearer of the two prices counts.
    """
    asked = asked_tier(request)
    tiers = (tier,) if tier or asked in _STANDARD else (asked, "")
    for name in (model, request.model) if model and model != request.model else (request.model,):
        dollars = [_cost(request, name, t, tokens) for t in tiers]
        if not any(map(math.isnan, dollars)):
            return max(dollars)
    return math.nan


def most_cost(request: Request, tokens: Tokens) -> float:
    """The US dollars that a call comes to at most, if it is billed no more tokens than these; NaN without any price.

    If the table does not know the price of the tier that is asked for, the dearest price that it knows of the model
    counts, which is then no bound, see `is_priced`.
    """
    asked = asked_tier(request)
    # With "auto" the account's settings decide. A service may answer by the standard tier where another was asked for.
    is_open = asked == "auto" or not (asked in _STANDARD or is_priced(request, asked))
    tiers = ("", *tiers_of(request)) if is_open else ("", asked)
    contexts = tuple(dict.fromkeys([_context(request, tier) for tier in tiers]))
    steps = _possible(request.provider, request.model, contexts, int(time.time()) // 60)
    return _dearest_of([rates for rates in steps if rates.above < tokens.input]).of(tokens) if steps else math.nan


def is_priced(request: Request, tier: str) -> bool:
    """Whether the table knows the price of the model at a service tier."""
    return not math.isnan(_cost(request, request.model, tier, Tokens()))


def asked_tier(request: Request) -> str:
    """The service tier that a request asks for; empty if it does not say."""
    tier = request.parameters.get("service_tier")
    return tier.casefold() if isinstance(tier, str) else ""


def tiers_of(request: Request) -> tuple[str, ...]:
    """The service tiers that the table has prices of for the model."""
    found = _find(request.provider, request.model)
    variants = (found[1].price_variants or ()) if found else ()
    return tuple(dict.fromkeys(v.when["service_tier"] for v in variants if "service_tier" in v.when))


def is_standard(tier: str) -> bool:
    """Whether a service tier is the one without a price of its own."""
    return tier.casefold() in _STANDARD


def context_window(provider: str, model: str) -> float:
    """The most tokens that a model reads and writes in one call, by the table; infinite if the table does not say."""
    found = _find(provider, model)
    return (found[1].context_window if found is not None else None) or math.inf


@functools.cache
def table() -> str:
    """The name and the version of the installed table."""
    return f"genai_prices {importlib.metadata.version('genai_prices')}"


def _cost(request: Request, model: str, tier: str, tokens: Tokens) -> float:
    # Prices change at whole minutes, at the most. A second is a key that needs no knowledge of when.
    steps = _rates(request.provider, model, _context(request, tier), int(time.time()))
    for rates in steps:
        if tokens.input > rates.above:
            return rates.of(tokens)
    return math.nan


def _context(request: Request, tier: str) -> _Context:
    """What the price depends on: the tier, and parameters that the provider has prices by, such as a `speed`."""
    given = [(k, v) for k in _priced_by(request.provider) if isinstance(v := request.parameters.get(k), str)]
    tier = tier.casefold()
    if tier not in _STANDARD:
        given.append(("processing", "batch") if tier == "batch" else ("service_tier", tier))
    return tuple(given)


# -- the table -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)  # a program asks few models, often
def _find(provider: str, model: str) -> "tuple[Provider, ModelInfo] | None":
    # Imported at the first price: it reads a large table, a quarter of a second that `import ember_jax` must not take.
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None


@functools.lru_cache(maxsize=256)
def _priced_by(provider: str) -> tuple[str, ...]:
    """The parameters of requests that prices of a provider depend on, besides the service tier."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        models = get_snapshot().find_provider(None, provider, None).models
    except LookupError:
        return ()
    names = {name for model in models for variant in model.price_variants or () for name in variant.when}
    return tuple(sorted(names - {"service_tier", "processing"}))


@functools.lru_cache(maxsize=1024)
def _rates(provider: str, model: str, context: _Context, second: int) -> tuple[_Rates, ...]:
    """The prices that hold at a time (in seconds since 1970), those of the longest prompts first; none if unknown."""
    price = _price(provider, model, context, datetime.fromtimestamp(second, UTC))
    return () if price is None else _steps(price)


@functools.lru_cache(maxsize=1024)
def _possible(provider: str, model: str, contexts: tuple[_Context, ...], minute: int) -> tuple[_Rates, ...]:
    """All prices that may hold within a day from a time (in minutes since 1970), in any of some contexts."""
    found = _find(provider, model)
    if found is None:
        return ()
    moments = _moments(found[1], datetime.fromtimestamp(60 * minute, UTC))
    known = [_price(provider, model, context, moment) for context in contexts for moment in moments]
    return tuple(dict.fromkeys(rates for price in known if price is not None for rates in _steps(price)))


def _moments(model: "ModelInfo", now: datetime) -> list[datetime]:
    """Now, and all times of the coming day at which prices of a model change."""
    from genai_prices.types import TimeOfDateConstraint

    rules = [*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ())]
    found = {now}
    for constraint in (rule.constraint for rule in rules):
        is_daily = isinstance(constraint, TimeOfDateConstraint)
        times = (constraint.start_time, constraint.end_time) if is_daily else (time_of_day(),)
        found |= {
            datetime.combine(now.date() + timedelta(days), at, at.tzinfo or UTC)
            for at in times
            for days in (-1, 0, 1, 2)  # a time of another zone may be on the day before or after
        }
    return [moment for moment in found if now <= moment <= now + timedelta(days=1)]


def _price(provider: str, model: str, context: _Context, moment: datetime) -> "ModelPrice | None":
    """What the table says; `None` if it does not know the model, or a part of the context."""
    found = _find(provider, model)
    if found is None:
        return None
    service, info = found
    known = dict(context)
    # A model that is another provider's has that one's prices, but not its tiers; so does the table's `calc_price`.
    variants = (info.price_variants or ()) if any(info is own for own in service.models) else ()
    applying = [
        variant.when.items()
        for variant in variants
        if variant.when.items() <= known.items() and (variant.constraint is None or variant.constraint.active(moment))
    ]
    if any(not is_standard(pair[1]) and not any(pair in when for when in applying) for pair in context):
        return None
    return info.get_prices(moment, known if variants else None)


def _steps(price: "ModelPrice") -> tuple[_Rates, ...]:
    """A price of the table as numbers, those of the longest prompts first."""
    from genai_prices.types import TieredPrices

    def at(name: str, above: int, default: float | None) -> float | None:
        """One price, for prompts of more than `above` tokens."""
        value = getattr(price, name)
        if isinstance(value, TieredPrices):
            value = next((tier.price for tier in reversed(value.tiers) if tier.start <= above), value.base)
        return default if value is None else float(value)

    def rates(above: int) -> _Rates:
        read, written = at("input_mtok", above, 0.0) or 0.0, at("output_mtok", above, 0.0) or 0.0
        cached, cache_write = at("cache_read_mtok", above, read) or 0.0, at("cache_write_mtok", above, read) or 0.0
        request = (at("requests_kcount", above, 0.0) or 0.0) / 1000
        reasoning = at("output_reasoning_mtok", above, None)
        for_long = at("cache_write_1h_mtok", above, None)
        return _Rates(read, written, cached, cache_write, reasoning, request, above, for_long)

    tiered = [value for value in vars(price).values() if isinstance(value, TieredPrices)]
    starts = {tier.start for value in tiered for tier in value.tiers}
    return tuple(rates(above) for above in sorted({-1, *starts}, reverse=True))
