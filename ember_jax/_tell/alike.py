"""What the calls of a plan begin with alike, as far as it is known before the plan runs, see `_runtime/prefixes.py`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from .._model.asking import ModelCall
from .._plan import ir
from .._runtime.prefixes import Prefixes, is_shared, shared_with
from .._runtime.session import Session
from .._runtime.sizes import Sizes
from .._text import store
from ..errors import ModelError
from ..providers import registry
from ..providers.base import Message, Provider, Request
from .known import Known

# Of so many models and system prompts it is told what they have in common.
_MOST = 64


def first_of(plan: ir.Plan, operands: Mapping[ir.Call, Sequence[Known | None]], session: Session) -> dict[ir.Call, str]:
    """What is to be said of calls of which one is sent first: those that are told a long system prompt several times.

    Prompts are mostly not known before a plan runs, so what they have in common besides is not told.
    """
    kinds: dict[ir.Call, tuple[tuple[bytes, bytes], ...]] = {}
    times: dict[tuple[tuple[bytes, bytes], ...], float] = {}
    tokens: dict[tuple[tuple[bytes, bytes], ...], float] = {}
    for call, many in _times(plan, 1):
        if not isinstance(call.function, ModelCall) or not call.function.operands.has_system or call not in operands:
            continue
        models, systems = operands[call][0], operands[call][2]
        if models is None or systems is None or len(models.rows()) * len(systems.rows()) > _MOST:
            continue
        kind = tuple((model, system) for model in models.rows() for system in systems.rows())
        kinds[call], times[kind] = kind, times.get(kind, 0) + many
        tokens[kind] = max(_tokens(*way, session) for way in kind)
    return {call: _said(tokens[kind], len(kind)) for call, kind in kinds.items() if tokens[kind] and times[kind] > 1}


def _said(tokens: float, ways: int) -> str:
    each = f" for each of {ways} system prompts and models" if ways > 1 else ""
    some = f"up to {tokens:,.0f}" if ways > 1 else f"some {tokens:,.0f}"
    return f"one call first{each}, then the others at once: they read {some} tokens that the service has kept"


def _times(plan: ir.Plan, times: float) -> Iterator[tuple[ir.Call, float]]:
    """The calls of a plan, and how often each is made at most."""
    for node in plan.nodes:
        if isinstance(node, ir.Call):
            yield node, times * math.prod(node.batch)
        for held in node.held:
            yield from _times(held.plan, times * held.times[1])


def _tokens(model: bytes, system: bytes, session: Session) -> float:
    """The tokens of a system prompt that calls of a model wait for; 0 if they do not wait."""
    words, name = store.peek(system), store.peek(model)
    try:
        request = Request(*registry.split(name or ""), (Message("system", words or ""),))
        provider = session.provider(request.provider)
    except ModelError:
        return 0.0
    return CommonPrompts(session.prefixes).tokens(request, provider)


@dataclasses.dataclass
class CommonPrompts:
    """Prompts that were asked, to tell what another one has in common with them."""

    prefixes: Prefixes
    _asked: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)

    def tokens(self, request: Request, provider: Provider) -> float:
        """How many tokens a prompt has, as estimated; 0 if no call waits for another one that begins so."""
        return Sizes(request.model).of_characters(len(self._text(request, provider)))

    def shared(self, request: Request, provider: Provider) -> str:
        """What a prompt begins with that one before it has begun with too; empty for nothing that counts."""
        if not (text := self._text(request, provider)):
            return ""
        tokens, least = Sizes(request.model).of_characters, provider.least_prefix(request)
        asked = self._asked.setdefault((request.provider, request.model), [])
        _, size = shared_with(asked, text)
        if is_shared(size, text, tokens, least):
            return text[:size]
        asked.append(text)
        return ""

    def _text(self, request: Request, provider: Provider) -> str:
        """The prompt as others are compared with it; empty if it is too short for any to wait."""
        text = self.prefixes.text(request, provider)
        return text if Sizes(request.model).of_characters(len(text)) >= provider.least_prefix(request) else ""
