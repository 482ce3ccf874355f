"""Writes a tiny language model for llama.cpp, the same bytes each time: `model.py OUT.gguf`.

It is a Llama of two layers with random weights, so that what it says is nonsense. But it leans towards what tests ask
for: after the line that its turn begins with, and after its thoughts, it likes to say the letter of an option; after a
letter it likes to end; and what it thinks, where it may, is the letter of an option in another spelling. So the
likeliest answer is a letter, and at a high temperature anything is.
"""

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 2, 128, 512
END, TURN, OPEN, CLOSE = "<|im_end|>", "<|im_start|>", "<think>", "</think>"
# Words that are one token each; a longer one is put together from its beginning.
WORDS = ["hello", " world", " yes", " no", " A", " B", "user", "assistant", "system", '{"', '":', "ing"]
# What likes to follow what.
LEANINGS = [(["\n", CLOSE], ["A", "B"]), (["A", "B"], [END]), ([OPEN], [" A", " B"]), ([" A", " B"], [CLOSE])]
# How much the first ones of a leaning stand out among all tokens, and how much the second ones like that.
STANDS_OUT, LIKES = 6.0, 1.7


def spelling(words: str) -> str:
    """Words as GPT-2's vocabulary spells them: each byte is a character that can be printed."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printed)
    characters = {b: chr(b) for b in printed} | {b: chr(256 + i) for i, b in enumerate(others)}
    return "".join(characters[b] for b in words.encode("latin-1"))


def vocabulary() -> tuple[list[str], list[str], list[int]]:
    """The tokens, the merges of pairs that make the longer ones, and the type of each token."""
    tokens = [spelling(chr(b)) for b in range(256)]
    merges = []
    for word in map(spelling, WORDS):
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.USER_DEFINED] * 2
    return [*tokens, END, TURN, OPEN, CLOSE], merges, types


def weights(tokens: list[str]) -> dict[str, np.ndarray]:
    """The tensors by name.

    The first numbers of a token's embedding, one for each leaning, say whether it is the first one of that leaning. No
    layer adds to them, so that they are still there where the logits are made.
    """
    rng = np.random.default_rng(0)
    special = {END, TURN, OPEN, CLOSE}
    kept = len(LEANINGS)

    def places(words: list[str]) -> list[int]:
        return [tokens.index(word if word in special else spelling(word)) for word in words]

    def draw(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    embedding, output = draw(len(tokens), WIDTH, scale=1.0), draw(len(tokens), WIDTH, scale=0.12)
    embedding[:, :kept] = output[:, :kept] = 0.0
    for dimension, (before, after) in enumerate(LEANINGS):
        embedding[places(before), dimension] = STANDS_OUT
        output[places(after), dimension] = LIKES
    tensors = {"token_embd.weight": embedding, "output.weight": output}
    tensors["output_norm.weight"] = np.ones(WIDTH, np.float32)
    for layer in range(LAYERS):
        shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        shapes |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
        for name, shape in shapes.items():
            matrix = draw(*shape, scale=0.1)
            if name in ("attn_output", "ffn_down"):
                matrix[:kept] = 0.0
            tensors[f"blk.{layer}.{name}.weight"] = matrix
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def write(path: str) -> None:
    tokens, merges, types = vocabulary()
    out = gguf.GGUFWriter(path, "llama")
    out.add_vocab_size(len(tokens))
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_merges(merges)
    out.add_token_types(types)
    out.add_bos_token_id(tokens.index(END))
    out.add_eos_token_id(tokens.index(END))
    out.add_add_bos_token(False)
    for name, tensor in weights(tokens).items():
        out.add_tensor(name, tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(sys.argv[1])
