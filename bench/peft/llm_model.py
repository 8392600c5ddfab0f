"""The model of llm.py and llm_check.py as transformers has it: from a GGUF file or a Hugging Face folder."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every file is given; nothing is looked up elsewhere
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

transformers.utils.logging.disable_progress_bar()
DTYPES = {"float": torch.float32, "bf16": torch.bfloat16}
CONTROL = 3  # gguf.TokenType.CONTROL


def load_base(path: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """The model with dequantised weights; `attention` is eager or sdpa."""
    where = {"gguf_file": path.name} if path.is_file() else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent if path.is_file() else path, dtype=dtype, attn_implementation=attention, **where)
    if type(model) is not transformers.LlamaForCausalLM or {tensor.dtype for tensor in model.parameters()} != {dtype}:
        raise SystemExit(f"{path}: expected a LlamaForCausalLM of {dtype}, got {type(model).__name__}")
    return plain(model, attention) if path.is_file() else model


def plain(model: Any, attention: str) -> Any:
    """The same weights in a model that does not count as quantised: that one cannot be saved."""
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config = transformers.LlamaConfig.from_dict(settings)
    copy = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation=attention)
    copy.load_state_dict(model.state_dict())
    return copy


def gguf_fields(path: Path) -> dict[str, Any]:
    import gguf

    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()
            if name.startswith("tokenizer.")}


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE in a GGUF file.

    transformers' own conversion takes GPT-2's splitting for "smollm" too and so splits blanks before a digit otherwise
    than the tokenizer.json of these models, which cuts out single digits first.
    """
    fields = gguf_fields(path)
    kind, splitting = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or splitting not in ("smollm", "gpt-2"):
        raise SystemExit(f"{path}: no byte-level BPE of a known splitting: {kind}, {splitting}")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    bytes_split = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits_split = [pre_tokenizers.Digits(individual_digits=True)] if splitting == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits_split, bytes_split])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind
                                  in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL])
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer beside the model or inside it; the names of special tokens in a text stay text."""
    tokenizer = gguf_tokenizer(path) if path.is_file() else Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_base(path: Path, folder: Path) -> None:
    """Writes the float32 model and its tokenizer as a Hugging Face folder."""
    if folder.exists():
        raise SystemExit(f"{folder} exists already")
    load_base(path).save_pretrained(folder)
    load_tokenizer(path).save(str(folder / "tokenizer.json"))
