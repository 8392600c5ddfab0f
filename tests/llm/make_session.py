#!/usr/bin/env python3
"""Make session.gguf, a tiny random Llama with a tokenizer inside, for the tests of the program: make_session.py.

One layer, hidden 32, 2 heads, 800 tokens, F16; the tokenizer is tokenizer/smollm.json. To remake it:

    pip install torch transformers gguf
    python tests/llm/make_session.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
from make_tiny import add_sizes, gguf_name, heads_of, permuted
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 5
DATA = Path(__file__).parent / "data"


def main() -> None:
    tokenizer = json.loads((DATA / "tokenizer" / "smollm.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"] | {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {each["content"] for each in tokenizer["added_tokens"]}
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    file = gguf.GGUFWriter(DATA / "session.gguf", "llama")
    file.add_string("made.by", f"make_session.py, seed {SEED}, torch {version('torch')}, gguf {version('gguf')}")
    add_sizes(file, config)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([gguf.TokenType.CONTROL if each in special else gguf.TokenType.NORMAL for each in tokens])
    file.add_token_merges(merges)
    file.add_eos_token_id(vocabulary["<|im_end|>"])
    file.add_add_bos_token(False)
    for name, parameter in model.named_parameters():
        rows, heads = parameter.detach().numpy(), heads_of(name, config)
        if heads:
            rows = permuted(rows, heads)
        file.add_tensor(gguf_name(name), rows if rows.ndim == 1 else rows.astype(np.float16))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    main()
