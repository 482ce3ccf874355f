"""A model that calls tools until it has its answer."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .. import LLM, Conversation, Key, Operator, Text, Tool, jit, text, tool
from .. import where as choose_text


class AgentRun(eqx.Module):
    """What an agent did.

    **Attributes:**

    - `answer`: the last words of the model.
    - `chat`: all that was said, calls and results of tools included; `print` shows it. It may be the beginning of
        another run: `agent.run(before.chat.user("And now?"))`.
    - `is_done`: whether the model wanted nothing more called. If not, a limit has ended the run.
    - `steps`, `calls`: int32, how often the model was asked, and how many calls of tools it wanted.
    - `input_tokens`, `output_tokens`: int32, of all steps.
    - `cost`: float32, US dollars of all steps; NaN where one has no known price.
    """

    answer: Text
    chat: Conversation
    is_done: Bool[Array, ""]
    steps: Int[Array, ""]
    calls: Int[Array, ""]
    input_tokens: Int[Array, ""]
    output_tokens: Int[Array, ""]
    cost: Float[Array, ""]


class Agent(Operator):
    """A model that calls tools until it has its answer: a bounded loop of `llm.tools` and the tools.

    ```python
    agent = ember.Agent(ember.LLM("openai/gpt-4o-mini"), [search, calculate])
    answers = jax.vmap(agent)(questions)
    ```

    The calls of one answer run at once, and lanes do not wait for each other. A tool that fails tells the model why.

    **Arguments:**

    - `llm`: the model. Its `system` says how to go about the task.
    - `tools`: functions, operators, and what `ember.tool` makes of them.
    - `max_steps`: how often the model is asked at most.
    - `max_calls`: how many calls of one answer are taken at most.
    - `max_tokens`, `max_cost_usd`: no further step is begun from so many tokens, or so many US dollars, on. A step
        without a known price ends a run that has `max_cost_usd`.

    **Raises:** `ValueError` for limits that are not positive, and what `ember.tool` raises.
    """

    llm: LLM
    tools: tuple[Tool, ...] = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    max_calls: int = eqx.field(static=True)
    max_tokens: int | None = eqx.field(static=True)
    max_cost_usd: float | None = eqx.field(static=True)

    def __init__(
        self,
        llm: LLM,
        tools: Callable[..., Any] | list[Any] | tuple[Any, ...],
        max_steps: int = 10,
        max_calls: int = 8,
        max_tokens: int | None = None,
        max_cost_usd: float | None = None,
    ):
        limits = {
            "max_steps": max_steps,
            "max_calls": max_calls,
            "max_tokens": max_tokens,
            "max_cost_usd": max_cost_usd,
        }
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ValueError(f"Agent({name}={value!r}): give a number above 0.")
        listed = tools if isinstance(tools, list | tuple) else [tools]
        if not listed:
            raise ValueError("Agent has no tools; a model without any is an operator as it is.")
        self.llm = llm
        self.tools = tuple(one if isinstance(one, Tool) else tool(one) for one in listed)
        self.max_steps, self.max_calls = max_steps, max_calls
        self.max_tokens, self.max_cost_usd = max_tokens, max_cost_usd

    def forward(self, question: Text, key: Key | None = None) -> Text:
        """The model's answer. If a limit has ended the run, its last words, which may be none: `run` tells."""
        return _run(self, Conversation([("user", question)]), key).answer

    def run(self, question: "str | Text | Conversation", key: Key | None = None) -> AgentRun:
        """Like calling the agent, and tells all that it did; a conversation goes on with what was said before."""
        chat = question if isinstance(question, Conversation) else Conversation([("user", question)])
        return _jitted(self, chat, key)


def _run(agent: Agent, chat: Conversation, key: Key | None) -> AgentRun:
    def may_go_on(so_far: AgentRun) -> Array:
        goes_on = ~so_far.is_done & (so_far.steps < agent.max_steps)
        if agent.max_tokens is not None:
            goes_on &= so_far.input_tokens + so_far.output_tokens < agent.max_tokens
        if agent.max_cost_usd is not None:
            goes_on &= so_far.cost < agent.max_cost_usd
        return goes_on

    def step(so_far: AgentRun) -> AgentRun:
        of_step = None if key is None else jax.random.fold_in(key, so_far.steps)
        reply = agent.llm.tools(so_far.chat, agent.tools, of_step, most=agent.max_calls)
        return AgentRun(
            answer=choose_text(reply.text == "", so_far.answer, reply.text),
            chat=reply.added_to(so_far.chat, reply.results(agent.tools)),
            is_done=reply.calls.length == 0,
            steps=so_far.steps + 1,
            calls=so_far.calls + reply.calls.length,
            input_tokens=so_far.input_tokens + reply.input_tokens,
            output_tokens=so_far.output_tokens + reply.output_tokens,
            cost=so_far.cost + reply.cost,
        )

    none = jnp.zeros((), jnp.int32)
    begin = AgentRun(text(""), chat, jnp.zeros((), bool), none, none, none, none, jnp.zeros((), jnp.float32))
    return jax.lax.while_loop(may_go_on, step, begin)


_jitted = jit(_run)
