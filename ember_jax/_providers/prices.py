"""What a call costs, by the price table that is installed with `genai_prices`."""

import math


def cost(provider: str, model: str, input_tokens: int, output_tokens: int) -> float:
    """The US dollars of one call, or NaN where the table has no price for the model.

    The table is the installed package's own; it is never fetched. Cached input is priced as any other, so the result
    is an upper bound for providers that give a discount on it.
    """
    # Imported at the first price: it reads a large table, a quarter of a second that `import ember_jax` must not take.
    import genai_prices

    usage = genai_prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    try:
        return float(genai_prices.calc_price(usage, model, provider_id=provider).total_price)
    except LookupError:
        return math.nan
