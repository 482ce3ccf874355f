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

    - `input`: of the prompt.
    - `output`: of the answer.

    **Raises:** `ValueError` for what is not a finite number of at least 0.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"Price({name}={value!r}): give US dollars for a million tokens, such as 0.15.")

    def of(self, input_tokens: float, output_tokens: float) -> float:
        """The US dollars of so many tokens; they may be infinite."""
        # what is free is free in any amount
        read = self.input * input_tokens if self.input and input_tokens else 0.0
        written = self.output * output_tokens if self.output and output_tokens else 0.0
        return (read + written) / 1e6


def cost(provider: str, model: str, input_tokens: float, output_tokens: float) -> float:
    """The US dollars of one call, or NaN where the table has no price for the model; tokens may be infinite.

    The table is the installed package's own; it is never fetched. Cached input is priced as any other, so the result
    is an upper bound for providers that give a discount on it.
    """
    found = _find(provider, model)
    if found is None:
        return math.nan
    price = found.get_prices(datetime.datetime.now(tz=datetime.UTC))
    rates = price.input_mtok, price.output_mtok
    # The table's own sum takes a tenth of a millisecond, which the event loop has not; most prices are two numbers.
    if isinstance(rates[0], Decimal) and isinstance(rates[1], Decimal) and price.requests_kcount is None:
        return Price(float(rates[0]), float(rates[1])).of(input_tokens, output_tokens)
    if math.isinf(input_tokens) or math.isinf(output_tokens):
        return math.inf
    import genai_prices  # see `_find`

    usage = genai_prices.Usage(input_tokens=int(input_tokens), output_tokens=int(output_tokens))
    return float(price.calc_price(usage)["total_price"])


def of_answer(provider: str, asked: str, answered: str, input_tokens: float, output_tokens: float) -> float:
    """As `cost`, by the model that answered, else by the one that was asked for, as a dated name may have no price."""
    dollars = cost(provider, answered, input_tokens, output_tokens)
    return cost(provider, asked, input_tokens, output_tokens) if math.isnan(dollars) else dollars


def context_window(provider: str, model: str) -> float:
    """The most tokens that a model reads and writes in one call, by the table; infinite where it does not say."""
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
