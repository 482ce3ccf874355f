"""What `transformers serve` runs: `serve.py`.

It prints its address when it answers, and ends when its standard input does: so it never outlives who started it, in
whatever way that ends.
"""

import os
import sys
import time

# Nothing is looked for on the network: models are folders.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# It prints what it likes; the address alone goes to who has started this.
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def main():
    from transformers.cli.serve import ReasoningMode, Serve

    serving = Serve(host="127.0.0.1", port=0, device="cpu", reasoning=ReasoningMode.AUTO, non_blocking=True)
    while not serving.server.started:
        time.sleep(0.05)
    (listening,) = serving.server.servers[0].sockets
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=told, flush=True)
    sys.stdin.read()
    os._exit(0)  # what the server still does is of no use to anyone


main()
