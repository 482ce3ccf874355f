"""What calls cost: prices of one's own, and the table that is installed with `genai_prices`."""

import datetime
import functools
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import genai_prices.types


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars for a million tokens.

    **Arguments:**

    - `input`: the price of the prompt's tokens.
    - `output`: the price of the answer's tokens.

    **Raises:** `ValueError` for a price that is not a finite number of at least 0.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"Price({name}={value!r}): give US dollars for a million tokens, such as 0.15.")

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """The US dollars of so many tokens; the numbers of tokens may be infinite."""
        # A product of 0 and infinity would be NaN, but tokens without a price are free in any number.
        read = self.input * input_tokens if self.input and input_tokens else 0.0
        written = self.output * output_tokens if self.output and output_tokens else 0.0
        return (read + written) / 1e6


def cost(provider: str, model: str, input_tokens: float, output_tokens: float) -> float:
    """The US dollars of one call; NaN if the table has no price for the model. The tokens may be infinite.

    The table is the one in the installed package, and is never fetched. Input that the provider has cached is priced as
    any other input, so the result is an upper bound for providers that give a discount on it.
    """
    found = _find(provider, model)
    if found is None:
        return math.nan
    price = found.get_prices(datetime.datetime.now(tz=datetime.UTC))
    rates = price.input_mtok, price.output_mtok
    # The table's own calculation takes a tenth of a millisecond, which is too long for the event loop. Most prices are
    # two numbers, and their sum is made here. Prices in steps, or by request, are left to the table.
    if isinstance(rates[0], Decimal) and isinstance(rates[1], Decimal) and price.requests_kcount is None:
        return Price(float(rates[0]), float(rates[1])).of(input_tokens, output_tokens)
    if math.isinf(input_tokens) or math.isinf(output_tokens):
        return math.inf
    import genai_prices  # see `_find`

    usage = genai_prices.Usage(input_tokens=int(input_tokens), output_tokens=int(output_tokens))
    return float(price.calc_price(usage)["total_price"])


def of_answer(provider: str, asked: str, answered: str, input_tokens: float, output_tokens: float) -> float:
    """As `cost`, by the model that answered. If it has no price, as a dated name may not, by the one asked for."""
    dollars = cost(provider, answered, input_tokens, output_tokens)
    return cost(provider, asked, input_tokens, output_tokens) if math.isnan(dollars) else dollars


def context_window(provider: str, model: str) -> float:
    """The most tokens that a model reads and writes in one call, by the table; infinite if the table does not say."""
    found = _find(provider, model)
    return (found.context_window if found is not None else None) or math.inf


@functools.lru_cache(maxsize=4096)  # a program asks few models, often
def _find(provider: str, model: str) -> "genai_prices.types.ModelInfo | None":
    # Imported at the first price: it reads a large table, a quarter of a second that `import ember_jax` must not take.
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None
