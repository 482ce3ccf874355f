"""Services that speak the protocol of chat completions, as a table: where each is, its key, and how it deviates.

To add one, write a line. What it says was looked up in the packages named: [groq 1.7.0], [together 3.1.1],
[mistralai 3.7.0], [openai 3.57.0] are the vendors' own; the rest is what litellm 1.110.2 sends, and the manuals of the
servers. Only deviations that make a service refuse, or pass over, what others take stand here. What answers differ in
(where reasoning stands, which counts are there) is read from all services alike.
"""

import difflib
from typing import TYPE_CHECKING

from ..errors import ModelError
from . import decisions
from .base import BatchLimits
from .chat import mistral_content
from .dialect import Service
from .http import TIMEOUT, HTTPProvider, Vendor
from .openai import ChatCompletions, Deviations

if TYPE_CHECKING:
    import httpx
    import httpx2


class Compatible(Vendor):
    """A service that speaks OpenAI's protocol, by its short name: `Compatible("groq")` is what `"groq/…"` asks.

    **Arguments:**

    - `name`: `azure`, `cerebras`, `deepseek`, `fireworks`, `groq`, `huggingface`, `mistral`, `nvidia`, `openrouter`,
        `together`, `xai`; and on this machine `llamacpp`, `lmstudio`, `ollama`, `sglang`, `transformers`, `vllm`.
    - `base_url`: the server's URL; `/v1`, or what the service has for it, is added to one that does not end with a
        version. By default the environment's, such as `GROQ_BASE_URL` or `AZURE_OPENAI_ENDPOINT`, else the service's
        own, or the port that a local server has if it is not told another.
    - `api_key`: by default the environment's, such as `GROQ_API_KEY`; `""` sends none.
    - `client`, `timeout`: as for `OpenAI`.

    **Raises:** `ModelError` for an unknown name; `ValueError` for a `base_url` that is no whole URL; `TypeError` for
    another `client`.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        client: "httpx.AsyncClient | httpx2.AsyncClient | None" = None,
        timeout: float = TIMEOUT,
    ):
        if name not in SERVICES:
            near = difflib.get_close_matches(name.lower(), SERVICES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"There is no service {name!r} in the table; there are {', '.join(SERVICES)}.{hint}")
        self._http = HTTPProvider(SERVICES[name], base_url, api_key, client, timeout)


_NONE = Deviations()


def _hosted(
    name: str,
    base_url: str,
    *key_variables: str,
    version: str = "/v1",
    base_variable: str = "",
    deviations: Deviations = _NONE,
) -> tuple[str, ChatCompletions]:
    variables = (base_variable or f"{name.upper()}_BASE_URL",)
    return name, ChatCompletions(
        Service("Compatible", base_url, variables, key_variables, version, name=name), deviations
    )


def _local(name: str, port: int, key_variable: str, deviations: Deviations = _NONE) -> tuple[str, ChatCompletions]:
    base_url, variables = f"http://localhost:{port}", (f"{name.upper()}_BASE_URL",)
    service = Service("Compatible", base_url, variables, (key_variable,), "/v1", needs_key=False, name=name)
    return name, ChatCompletions(service, deviations)


# Their requests have the older of the two names alone.
_MAX_TOKENS = ("max_completion_tokens", "max_tokens")
_OLDER = Deviations(renamed=(_MAX_TOKENS,))
# They are known to give one answer to a request, whatever its `n`. Of others that is found out.
_OLDER_SINGLE = Deviations(renamed=(_MAX_TOKENS,), most_samples=1)
_SINGLE = Deviations(most_samples=1)
# They decide without words, if the model can. [transformers 5.24.0], [vLLM 0.32.0], [SGLang 0.5.23], llama.cpp.
_DECIDES = Deviations(decisions=decisions.SYSTEMONE)

SERVICES = dict(
    (
        # Of the resource, whose name is in its URL; the part `/openai/v1` needs no version in the query.
        _hosted(
            "azure",
            "",
            "AZURE_OPENAI_API_KEY",
            version="/openai/v1",
            base_variable="AZURE_OPENAI_ENDPOINT",
            deviations=Deviations(key_header="api-key"),  # [openai 3.57.0]
        ),
        _hosted("cerebras", "https://api.cerebras.ai", "CEREBRAS_API_KEY"),
        _hosted("deepseek", "https://api.deepseek.com", "DEEPSEEK_API_KEY", deviations=_OLDER_SINGLE),
        _hosted(
            "fireworks", "https://api.fireworks.ai", "FIREWORKS_API_KEY", version="/inference/v1", deviations=_OLDER
        ),
        # [groq 1.7.0]
        _hosted("groq", "https://api.groq.com", "GROQ_API_KEY", version="/openai/v1", deviations=_SINGLE),
        _hosted("huggingface", "https://router.huggingface.co", "HF_TOKEN", deviations=_OLDER),
        # [mistralai 3.7.0] has no other name for any of them, and refuses what it does not know. The service refuses
        # more than 16,384 tokens of texts at once ("Too many tokens in batch"), and more than 512 texts.
        _hosted(
            "mistral",
            "https://api.mistral.ai",
            "MISTRAL_API_KEY",
            deviations=Deviations(
                renamed=(_MAX_TOKENS, ("seed", "random_seed"), ("dimensions", "output_dimension")),
                batch=BatchLimits(tokens=16_384),
                content=mistral_content,
                has_stream_options=False,
            ),
        ),
        _hosted(
            "nvidia",
            "https://integrate.api.nvidia.com",
            "NVIDIA_API_KEY",
            "NVIDIA_NIM_API_KEY",
            deviations=_OLDER,
        ),
        _hosted("openrouter", "https://openrouter.ai/api", "OPENROUTER_API_KEY"),
        # [together 3.1.1]: `logprobs` is a number.
        _hosted(
            "together",
            "https://api.together.ai",
            "TOGETHER_API_KEY",
            deviations=Deviations(renamed=(_MAX_TOKENS,), counts_logprobs=True),
        ),
        _hosted("xai", "https://api.x.ai", "XAI_API_KEY"),
        _local("llamacpp", 8080, "LLAMA_API_KEY", _DECIDES),
        _local("lmstudio", 1234, "LM_STUDIO_API_KEY", _OLDER_SINGLE),
        _local("ollama", 11434, "OLLAMA_API_KEY", _OLDER_SINGLE),
        _local("sglang", 30000, "SGLANG_API_KEY", Deviations(decisions=decisions.SGLANG)),
        _local("transformers", 8000, "TRANSFORMERS_API_KEY", _DECIDES),
        _local("vllm", 8000, "VLLM_API_KEY", Deviations(decisions=decisions.VLLM)),
    )
)
