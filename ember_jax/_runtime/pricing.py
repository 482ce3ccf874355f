"""What calls cost, and what they may cost at most: by the session's own prices, else by the provider's.

Design note. What a call may cost is worked out before it is sent, and is to be a true upper bound. Who asks for no
service tier is served by the one of the account's settings, which nobody here knows. To reserve the dearest tier for
every call was rejected, as most accounts use the standard one, and their budgets would let through half as many calls
at once. So the standard tier counts, until an answer says that it was served by another one. From then on that one
counts too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from ..errors import BudgetError, UnboundedAnswerWarning, UnknownPriceWarning
from ..providers import prices, tokens
from ..providers.base import Provider, Request, Response, Tokens
from ..providers.prices import Price
from .budget import Budget, Hold, usd
from .warned import Warned


class Pricing:
    """The prices of a session, and its budget.

    **Arguments:**

    - `own`: prices by provider, or by `provider/model`, which takes precedence.
    - `provider`: finds a provider by name.
    - `budget`: the budget that calls are paid from.

    **Attributes:**

    - `tables`: the price tables that answers have been priced by so far, with their versions.

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
        self._unlimited = None if budget.has_cap else Hold(budget, 0.0)
        self.tables: set[str] = set()
        self._warned = Warned()
        # The service tiers that have answered without being asked for, by provider and model.
        self._tiers: dict[tuple[str, str], set[str]] = {}

    def cost(self, request: Request, tokens: Tokens) -> float:
        """The US dollars of an answer that takes so many tokens, which may be infinite; NaN if nobody knows."""
        own = self._of(request)
        if own is not None:
            return own.of(tokens.input, tokens.output, tokens.cached, tokens.cache_write)
        return self._provider(request.provider).cost(request, tokens)

    def table(self, model: str) -> str:
        """The table that a model's price is from, with its version; empty if it is from none."""
        provider, _, name = model.partition("/")
        request = Request(provider, name, ())
        is_own = self._of(request) is not None or math.isnan(self.cost(request, Tokens()))
        return "" if is_own else self._provider(provider).price_table

    def most_output(self, request: Request) -> float:
        """The most tokens that an answer can have; infinite where nothing bounds it."""
        return tokens.most_output(request, self._provider(request.provider))

    def hold(self, request: Request) -> Hold:
        """What a call is to take of the budget. Raises `BudgetError` if nothing bounds its answer."""
        if self._unlimited is not None:
            return self._unlimited
        return Hold(self._budget, self._reserved(request) if self._budget.asks_worst else 0.0)

    def worst(self, request: Request) -> float:
        """The US dollars that a call may come to at most; infinite where nothing bounds it, NaN without a price."""
        output = request.answers * self.most_output(request)
        return self.most(request, Tokens(tokens.bounds(request)[1], output))

    def most(self, request: Request, tokens: Tokens) -> float:
        """The US dollars that a call comes to at most, if it is billed no more tokens than these; NaN likewise."""
        own = self._of(request)
        if own is not None:
            return own.most(tokens.input, tokens.output)
        provider = self._provider(request.provider)
        tiers = () if prices.asked_tier(request) else self._tiers.get((request.provider, request.model), ())
        return max(provider.most_cost(r, tokens) for r in (request, *(_at_tier(request, tier) for tier in tiers)))

    def priced(self, request: Request, response: Response, provider: Provider) -> Response:
        """The answer with its cost filled in, by the session's own price if there is one. Warns if it is not known."""
        own = self._of(request)
        is_counted = response.input_tokens or response.output_tokens
        if own is not None:
            # A service that does not count tokens says 0 and 0. The cost is then unknown, unless the price is 0.
            is_known = is_counted or own.most(1, 1) == 0
            response = response._replace(cost=self.cost(request, response.tokens) if is_known else math.nan)
        else:
            self._note_table(request, provider.price_table)
        if response.service_tier and not (prices.is_standard(response.service_tier) or prices.asked_tier(request)):
            self._tiers.setdefault((request.provider, request.model), set()).add(response.service_tier)
        if math.isnan(response.cost) and not provider.is_local:
            # Two causes: no price is known, or the price is but not the tokens. Each has another remedy.
            so = "what its calls cost is not counted, and the report's cost_usd is NaN"
            if is_counted or math.isnan(self.cost(request, Tokens())):
                self._warn_of_price(request, so, response.service_tier)
            else:
                words = f"does not say how many tokens its answers have: {so}."
                self._warned.tell(request, UnknownPriceWarning, words)
        return response

    def _note_table(self, request: Request, table: str) -> None:
        """Notes the table that an answer is priced by, if it has the model."""
        if table and table not in self.tables and not math.isnan(self.cost(request, Tokens())):
            self.tables.add(table)

    def _of(self, request: Request) -> Price | None:
        if not self._own:
            return None
        return self._own.get(f"{request.provider}/{request.model}") or self._own.get(request.provider)

    def _reserved(self, request: Request) -> float:
        worst = self.worst(request)
        if math.isnan(worst):
            self._warn_of_price(request, "budget_usd does not cover its calls")
            return 0.0
        # Of a tier without a price, another one's price is better than none.
        if prices.asked_tier(request) and math.isnan(self.cost(request, Tokens())):
            self._warn_of_price(request, "budget_usd does not cover its calls, as what is reserved is no bound")
        if worst < math.inf:
            if tokens.output_limit(request) is None and self.most_output(request) < math.inf:
                self._tell_of_limit(request, worst)
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

    def _tell_of_limit(self, request: Request, worst: float) -> None:
        """Says that a model's answers are bounded by what it can say at most."""
        if worst:
            self._warned.tell(
                request,
                UnboundedAnswerWarning,
                f"is asked without max_tokens: budget_usd reserves {usd(worst)} for a call, by the model's own limit "
                f"of {self.most_output(request):,.0f} tokens. Give LLM(…, max_tokens=…) to let more calls go at once.",
            )

    def _warn_of_price(self, request: Request, so: str, tier: str = "") -> None:
        name = f"{request.provider}/{request.model}"
        tier = tier or prices.asked_tier(request)
        at = "" if prices.is_standard(tier) else f" at the service tier {tier!r:.40}"
        self._warned.tell(
            request,
            UnknownPriceWarning,
            f"has no known price{at}: {so}. Give it one: ember.session(prices={{{name!r}: ember.Price(input=…, "
            "output=…)}), in US dollars per million tokens.",
        )


def _at_tier(request: Request, tier: str) -> Request:
    """A request as if it asked for a service tier."""
    return dataclasses.replace(request, parameters={**request.parameters, "service_tier": tier})
