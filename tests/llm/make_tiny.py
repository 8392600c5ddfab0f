#!/usr/bin/env python3
"""Make tiny Llamas with transformers, as Hugging Face folders and as GGUF, and what they compute: make_tiny.py.

tiny/                  tied, F16: 2 layers of 4 heads and 2 key heads; every value is one of half precision
tiny.f32.gguf          the same numbers; rows of q and k permuted as llama.cpp's converter does it
tiny.q8_0.gguf         the same with matrices in Q8_0
untied/                not tied, BF16: 1 layer, 2 heads and 1 key head of 8 numbers: together narrower than the rows
adapter/               a PEFT adapter on tiny/: r = 2, alpha = 3, all linear layers, random factors
reference.safetensors  float32, of tiny/ unless a name says otherwise
  tokens, targets              [3, 7], -1 where a target is ignored
  logits, loss                 [21, vocabulary]; the sum over targets that count
  adapter.loss                 the same through PEFT
  <module>.lora_A, .lora_B     [r, in], [out, r]: gradients of adapter.loss
  prompt                       [5]
  continuation, adapter.continuation   [20], greedy, each token ahead of the next best by MARGIN at least
  untied.logits                [7, vocabulary] of the first sequence
  q8_0.<tensor>                what tiny.q8_0.gguf holds, dequantised by the package gguf, rows in transformers' order

Seed and versions stand in reference.safetensors. To remake them:

    pip install torch transformers peft safetensors gguf
    python tests/llm/make_tiny.py --seed 11
"""

import argparse
import json
import os
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import peft
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SEED = 11
SEQUENCES, LENGTH, PROMPT, CONTINUATION = 3, 7, 5, 20
IGNORED = -1
MARGIN = 1e-3
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Wide weights, so that attention looks somewhere and an error anywhere shows in the logits.
COMMON = {
    "vocab_size": 128, "hidden_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
TINY = {
    "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
}  # fmt: skip
UNTIED = {
    "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}  # fmt: skip
EXPECTED_Q8_0 = (
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
)


def random_model(config: dict, dtype: torch.dtype, folder: Path) -> LlamaForCausalLM:
    """Saved in `dtype` with weights that are all random, norms too; given back in float32, as a reader has it."""
    model = LlamaForCausalLM(LlamaConfig(**COMMON, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return load(folder)


def load(folder: Path, **options) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


# ---- GGUF


def gguf_name(name: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    if name in fixed:
        return fixed[name]
    layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{parts[module]}.weight"


def heads_of(name: str, config: LlamaConfig) -> int:
    """Of a matrix whose rows are permuted, else 0."""
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else 0


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape).copy()


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape).copy()


def add_sizes(file: gguf.GGUFWriter, config: LlamaConfig) -> None:
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_rope_dimension_count(config.head_dim)


def write_gguf(path: Path, model: LlamaForCausalLM, kind: Type, made_by: str) -> dict[str, Tensor]:
    """The file, and its matrices as a reader of transformers' order has them."""
    config, expected = model.config, {}
    file = gguf.GGUFWriter(path, "llama")
    file.add_type("model")
    file.add_string("made.by", made_by)
    add_sizes(file, config)
    for name, parameter in model.named_parameters():
        rows, heads = parameter.detach().numpy(), heads_of(name, config)
        if heads:
            rows = permuted(rows, heads)
        if rows.ndim == 1 or kind == Type.F32:
            file.add_tensor(gguf_name(name), rows)
            continue
        blocks = gguf.quantize(rows, kind)
        file.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
        rows = gguf.dequantize(blocks, kind)
        expected[name] = torch.from_numpy(unpermuted(rows, heads) if heads else rows.copy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return expected


def check_gguf(folder: Path, file: str, expected: dict[str, Tensor]) -> None:
    """transformers reads the same numbers out of the file."""
    with tempfile.TemporaryDirectory() as empty:
        shutil.copy(folder / file, empty)
        loaded = dict(load(Path(empty), gguf_file=file).named_parameters())
    for name, rows in expected.items():
        assert torch.equal(loaded[name], rows), (file, name)


# ---- what the models compute


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED,
                         reduction="sum")  # fmt: skip


@torch.no_grad()
def continuation_of(model: torch.nn.Module, prompt: Tensor) -> Tensor:
    tokens = model.generate(input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), do_sample=False,
                            max_new_tokens=CONTINUATION, min_new_tokens=CONTINUATION, pad_token_id=0)  # fmt: skip
    best = model(input_ids=tokens).logits[0, prompt.numel() - 1 : -1].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > MARGIN, best
    return tokens[0, prompt.numel() :].contiguous()


def adapted(model: LlamaForCausalLM, folder: Path) -> peft.PeftModel:
    model.name_or_path = model.config._name_or_path = "tiny"
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=MODULES, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return model


def gradients_of(model: peft.PeftModel) -> dict[str, Tensor]:
    short = lambda name: name.removeprefix("base_model.model.").removesuffix(".default.weight")
    return {short(name): each.grad for name, each in model.named_parameters() if each.grad is not None}


def reference_of(model: LlamaForCausalLM, untied: LlamaForCausalLM, adapter: Path) -> dict[str, Tensor]:
    vocabulary = model.config.vocab_size
    tokens = torch.randint(vocabulary, (SEQUENCES, LENGTH))
    targets = torch.cat([tokens[:, 1:], torch.full((SEQUENCES, 1), IGNORED)], dim=1)
    targets[1, :3] = IGNORED
    prompt = torch.randint(vocabulary, (PROMPT,))
    result = {"tokens": tokens, "targets": targets, "prompt": prompt}
    with torch.no_grad():
        result["untied.logits"] = untied(input_ids=tokens[:1]).logits[0]
        logits = model(input_ids=tokens).logits
        result["logits"], result["loss"] = logits.reshape(-1, vocabulary), loss_of(logits, targets)
    result["continuation"] = continuation_of(model, prompt)
    model = adapted(model, adapter)
    loss = loss_of(model(input_ids=tokens).logits, targets)
    loss.backward()
    result |= {"adapter.loss": loss.detach(), **gradients_of(model)}
    result["adapter.continuation"] = continuation_of(model, prompt)
    assert not torch.equal(result["continuation"], result["adapter.continuation"])
    return {name: tensor.contiguous() for name, tensor in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    packages = ("gguf", "numpy", "peft", "safetensors", "torch", "transformers")
    versions = {name: version(name) for name in packages}
    made_by = f"make_tiny.py --seed {options.seed}, " + ", ".join(f"{name} {is_}" for name, is_ in versions.items())
    for name in ("tiny", "untied", "adapter"):
        shutil.rmtree(options.out / name, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tiny = random_model(TINY, torch.float16, options.out / "tiny")
    untied = random_model(UNTIED, torch.bfloat16, options.out / "untied")
    numbers = {name: parameter.detach().clone() for name, parameter in tiny.named_parameters()}
    write_gguf(options.out / "tiny.f32.gguf", tiny, Type.F32, made_by)
    check_gguf(options.out, "tiny.f32.gguf", numbers)
    quantised = write_gguf(options.out / "tiny.q8_0.gguf", tiny, Type.Q8_0, made_by)
    check_gguf(options.out, "tiny.q8_0.gguf", quantised)

    reference = reference_of(tiny, untied, options.out / "adapter")
    reference |= {f"q8_0.{name}": quantised[name] for name in EXPECTED_Q8_0}
    reference["q8_0.model.embed_tokens.weight"] = quantised["model.embed_tokens.weight"][:3].contiguous()
    save_file(reference, options.out / "reference.safetensors", {**versions, "seed": str(options.seed)})
    print(json.dumps(versions))
    print(f"loss {reference['loss']:.4f}, with the adapter {reference['adapter.loss']:.4f}")
    print("continuation", reference["continuation"].tolist())
    print("with adapter", reference["adapter.continuation"].tolist())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT still asks for it
    warnings.filterwarnings("ignore", "Could not find a config file in tiny")  # nor is there one
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
