"""llama.cpp's own HTTP server, out of the wheel of xllamacpp: `llamacpp.py MODEL.gguf KEY MODE`.

It prints its address when it answers, and ends when its standard input does: so it never outlives who started it, in
whatever way that ends.
"""

import os
import sys

import xllamacpp

BEFORE = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
THOUGHTS = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
AFTER = "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
# With the second the model's turn begins with thoughts. The server learns that from the template, and takes them out of
# the answer.
TEMPLATES = {"plain": f"{BEFORE}{AFTER}{{% endif %}}", "think": f"{BEFORE}{THOUGHTS}{AFTER}<think>{{% endif %}}"}

mode = sys.argv[3]
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"tiny"}
params.api_keys = [sys.argv[2]]
if mode == "vectors":  # such a model says no words
    params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
else:
    params.chat_template = TEMPLATES[mode]
params.port = 0  # any that is free
params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 2, 1024, 1
params.warmup, params.endpoint_metrics = False, True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)  # what the server still does is of no use to anyone
