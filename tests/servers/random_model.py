"""Writes a tiny language model for transformers, of random weights: `random_model.py FOLDER`.

What it says is nonsense. With the same version of PyTorch it is the same nonsense each time.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, TURN, END = SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
LINES = ["hello world, is this a question", "yes no A B C D answer", "0 1 2 3 4 5 6 7 8 9 user system assistant"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: str) -> None:
    torch.manual_seed(0)
    bytes_alone = Tokenizer(models.BPE())
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    bytes_alone.train_from_iterator(LINES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, bos_token=TURN, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=SPECIAL.index(TURN),
            eos_token_id=SPECIAL.index(END),
            pad_token_id=SPECIAL.index(PAD),
            initializer_range=0.3,
        )
    )
    model.generation_config.do_sample = False
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    write(sys.argv[1])
