"""What calls cost, and what they may cost at most: by the session's own prices, else by the provider's."""

import math
import warnings
from collections.abc import Callable, Mapping

from .._errors import BudgetError, UnknownPriceWarning
from .._providers import tokens
from .._providers.base import Provider, Request, Response, Tokens
from .._providers.prices import Price
from .budget import Budget, Hold


class Pricing:
    """The prices of a session, and its budget.

    **Arguments:**

    - `own`: prices by provider, or by `provider/model`, which takes precedence.
    - `provider`: finds a provider by name.
    - `budget`: the budget that calls are paid from.

    **Raises:** `TypeError` for what is no `Price`, `ModelError` for the price of a provider that is not there.
    """

    def __init__(self, own: Mapping[str, Price], provider: Callable[[str], Provider], budget: Budget):
        for name, price in own.items():
            if not isinstance(price, Price):
                raise TypeError(f"session(prices={{{name!r}: …}}) takes a Price, not {type(price).__name__}.")
            provider(name.partition("/")[0])  # raises for a misspelt name, whose price would never be used
        self._own = dict(own)
        self._provider = provider
        self._budget = budget
        self._warned: set[tuple[str, str]] = set()

    def cost(self, request: Request, tokens: Tokens) -> float:
        """The US dollars of an answer that takes so many tokens, which may be infinite; NaN if nobody knows."""
        own = self._of(request)
        if own is not None:
            return own.of(tokens.input, tokens.output)
        return self._provider(request.provider).cost(request, tokens)

    def most_output(self, request: Request) -> float:
        """The most tokens that an answer can have; infinite where nothing bounds it."""
        limit = tokens.output_limit(request)
        return self._provider(request.provider).most_output(request) if limit is None else limit

    def hold(self, request: Request) -> Hold:
        """What a call is to take of the budget. Raises `BudgetError` if nothing bounds its answer."""
        return Hold(self._budget, self._reserved(request) if self._budget.asks_worst else 0.0)

    def worst(self, request: Request) -> float:
        """The US dollars that a call may come to at most; infinite where nothing bounds it, NaN without a price."""
        return self.cost(request, Tokens(tokens.bounds(request)[1], self.most_output(request)))

    def priced(self, request: Request, response: Response) -> Response:
        """The answer with its cost filled in, by the session's own price if there is one. Warns if it is not known."""
        own = self._of(request)
        if own is not None:
            counted = response.input_tokens, response.output_tokens
            # A service that does not count tokens says 0 and 0. The cost is then unknown, unless the price is 0.
            is_known = any(counted) or own == Price(0, 0)
            response = response._replace(cost=own.of(*counted) if is_known else math.nan)
        if math.isnan(response.cost) and not self._provider(request.provider).is_local:
            # Two causes: no price is known, or the price is but not the tokens. Each has another remedy.
            so = "what its calls cost is not counted, and the report's cost_usd is NaN"
            if math.isnan(self.cost(request, Tokens())):
                self._warn_of_price(request, so)
            else:
                self._warn(request, f"does not say how many tokens its answers have: {so}.")
        return response

    def _of(self, request: Request) -> Price | None:
        return self._own.get(f"{request.provider}/{request.model}") or self._own.get(request.provider)

    def _reserved(self, request: Request) -> float:
        worst = self.worst(request)
        if math.isnan(worst):
            self._warn_of_price(request, "budget_usd does not cover its calls")
            return 0.0
        if worst < math.inf:
            return worst
        funds = self._budget.funds()
        raise BudgetError(
            f"{request.provider}/{request.model}: nothing bounds this call's answer, and so what it may cost, as "
            f"budget_usd={funds.cap:g} demands. Give LLM(…, max_tokens=…).",
            cap=funds.cap,
            spent=funds.spent,
            reserved=funds.reserved,
            worst=worst,
        )

    def _warn_of_price(self, request: Request, so: str) -> None:
        name = f"{request.provider}/{request.model}"
        self._warn(
            request,
            f"has no known price: {so}. Give it one: ember.session(prices={{{name!r}: ember.Price(input=…, "
            "output=…)}), in US dollars per million tokens.",
        )

    def _warn(self, request: Request, words: str) -> None:
        """Warns once for each model.

        It is called on the event loop, between a paid answer and its lane. Where the user makes warnings errors,
        raising one here would lose the answer, so the warning is only shown.
        """
        model = request.provider, request.model
        if model in self._warned:
            return
        self._warned.add(model)
        message = f"{'/'.join(model)} {words}"
        try:
            warnings.warn(message, UnknownPriceWarning, stacklevel=1)
        except UnknownPriceWarning as told:
            warnings.showwarning(told, UnknownPriceWarning, __file__, 0)
