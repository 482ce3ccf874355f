"""LiteLLM's proxy: `proxy.py KEY UPSTREAM`, with the key that it takes and the base URL of a server behind it.

It prints its address when it answers, and ends when its standard input does: so it never outlives who started it, in
whatever way that ends. It knows no key but its own, as one without a database. Its models are

- `behind`: that of the server behind it, which speaks chat completions.
- `vectors`: likewise, for embeddings.
- `limited`: likewise, five times a minute.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
import threading

# LiteLLM prints what it likes; the address alone goes to who has started this.
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# What it would load from the network is in the package as well.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
KEY, UPSTREAM = sys.argv[1:]
BEHIND = {"model": "custom_openai/good", "api_base": UPSTREAM, "api_key": "none"}
MODELS = {
    "behind": BEHIND,
    "vectors": BEHIND | {"model": "hosted_vllm/good"},
    "limited": BEHIND | {"rpm": 5},
}
CONFIG = {
    "model_list": [{"model_name": name, "litellm_params": params} for name, params in MODELS.items()],
    "router_settings": {
        "num_retries": 0,
        "disable_cooldowns": True,
        "optional_pre_call_checks": ["enforce_model_rate_limits"],
    },
    "litellm_settings": {"telemetry": False},
    "general_settings": {"master_key": KEY},
}


def end():
    sys.stdin.read()
    os._exit(0)  # what the server still does is of no use to anyone


async def serve():
    # They take a while, and read the environment.
    import uvicorn
    from litellm.proxy.proxy_server import app

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.05)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=told, flush=True)
    await serving


threading.Thread(target=end, daemon=True).start()
with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
    json.dump(CONFIG, config)
    config.flush()
    os.environ["CONFIG_FILE_PATH"] = config.name
    asyncio.run(serve())
