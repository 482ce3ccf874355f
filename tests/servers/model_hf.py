"""Writes a tiny Llama of random weights for `transformers serve`: `model_hf.py FOLDER`.

Its vocabulary has a token for each letter, and with `Yes` in it and no `No`: predicates cannot be read off, and choices
can.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MARKS = ["<|begin|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}<|begin|>assistant\n"
)

torch.manual_seed(0)
words = Tokenizer(models.BPE())
words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
words.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
words.train_from_iterator(["Yes it is, said the water"] * 20, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=MARKS[0], eos_token=MARKS[1], pad_token=MARKS[0])
tokenizer.chat_template = TEMPLATE
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
)
tokenizer.save_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[1])
