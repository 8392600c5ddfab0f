#!/usr/bin/env python3
"""Make the models and adapters of this folder: all numbers are small dyadic fractions, so that every order of
summation gives the same bits and the merged weights are known exactly.

llama/               model.safetensors (weights in F32, F16 and BF16), config.json
gpt2/                the same with Conv1D's [in, out] and names as on the hub, without "transformer."
*_adapter/           PEFT adapters; llama_adapter has patterns of ranks and alphas
*_merged.safetensors the models with the adapters in them
gpt2_square/         of gpt2 attn.c_proj alone, whose shape does not tell which way round it lies
llama_parts/         llama in two files with an index, as transformers saves it; llama_parts_merged/ likewise

Nothing is random. To remake them: pip install safetensors torch
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
METADATA = {"format": "pt", "made_by": f"make_data.py, safetensors {safetensors.__version__}"}


def numbers(seed: int, rows: int, cols: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Eighths between -1 and 1."""
    i, j = torch.arange(rows)[:, None], torch.arange(cols)[None, :]
    return (((7 * i + 3 * j + i * j + 11 * seed) % 17 - 8) / 8).to(dtype)


def make(name: str, config: dict, model: dict, modules: dict, adapter: dict, prefix: str = "") -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(model, folder / "model.safetensors", METADATA)
    merged, factors = dict(model), {}
    for seed, (module, (rank, alpha)) in enumerate(modules.items()):
        key = module.removeprefix(prefix) + ".weight"
        weight = model[key]
        conv = adapter.get("fan_in_fan_out", False)
        outputs, inputs = weight.T.shape if conv else weight.shape
        a, b = numbers(20 + seed, rank, inputs), numbers(40 + seed, outputs, rank)
        delta = alpha / rank * b @ a
        merged[key] = (weight.float() + (delta.T if conv else delta)).to(weight.dtype).contiguous()
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(merged, HERE / f"{name}_merged.safetensors", METADATA)
    folder = HERE / f"{name}_adapter"
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    whole = {"base_model_name_or_path": None, "peft_type": "LORA", "task_type": "CAUSAL_LM"} | adapter
    (folder / "adapter_config.json").write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")


def make_parts(name: str, model: dict) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    keys, files = sorted(model), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    metadata = {"format": "pt"}  # one key: safetensors writes several in any order
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for file, half in zip(files, halves):
        save_file({key: model[key] for key in half}, folder / file, metadata)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in model.values())},
        "weight_map": {key: file for file, half in zip(files, halves) for key in half},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def make_square() -> None:
    (HERE / "gpt2_square").mkdir(exist_ok=True)
    key = "h.0.attn.c_proj.weight"
    weight = load_file(HERE / "gpt2/model.safetensors")[key]
    save_file({key: weight}, HERE / "gpt2_square/model.safetensors", {"format": "pt"})
    merged = load_file(HERE / "gpt2_merged.safetensors")[key]
    save_file({key: merged}, HERE / "gpt2_square/merged.safetensors", {"format": "pt"})
    folder = HERE / "gpt2_square/adapter"
    folder.mkdir(exist_ok=True)
    factors = load_file(HERE / "gpt2_adapter/adapter_model.safetensors")
    alone = {name: tensor for name, tensor in factors.items() if ".c_proj." in name}
    save_file(alone, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((HERE / "gpt2_adapter/adapter_config.json").read_text()) | {"target_modules": ["c_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def llama() -> None:
    model = {"model.embed_tokens.weight": numbers(1, 10, 12), "model.norm.weight": numbers(2, 1, 12)[0]}
    for layer, dtype in enumerate((torch.float32, torch.bfloat16)):
        place = f"model.layers.{layer}."
        model |= {
            place + "self_attn.q_proj.weight": numbers(3 + layer, 12, 12, dtype),
            place + "self_attn.k_proj.weight": numbers(5 + layer, 6, 12, dtype),
            place + "mlp.down_proj.weight": numbers(7 + layer, 12, 20, torch.float16),
            place + "input_layernorm.weight": numbers(9 + layer, 1, 12)[0],
        }
    model["steps"] = torch.tensor([[3, -1], [4, 2**40]])
    # Most have s r = 8; one is of rank 4, one has an alpha of its own.
    places = [f"model.layers.{layer}." for layer in range(2)]
    modules = {place + end: (2, 8.0) for place in places for end in ("self_attn.q_proj", "self_attn.k_proj")}
    modules |= {places[0] + "mlp.down_proj": (4, 8.0), places[1] + "mlp.down_proj": (2, 1.0)}
    modules[places[1] + "self_attn.q_proj"] = (4, 8.0)
    make(
        "llama",
        {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
        model,
        modules,
        {
            "r": 2,
            "lora_alpha": 8,
            "rank_pattern": {"layers.0.mlp.down_proj": 4, "layers.1.self_attn.q_proj": 4},
            "alpha_pattern": {"layers.1.mlp.down_proj": 1},
            "target_modules": ["down_proj", "k_proj", "q_proj"],
            "trained_with": "a key that PEFT does not know",
        },
    )


def gpt2() -> None:
    model = {
        "wte.weight": numbers(1, 10, 12),
        "h.0.attn.c_attn.weight": numbers(2, 12, 36),
        "h.0.attn.c_attn.bias": numbers(3, 1, 36)[0],
        "h.0.attn.c_proj.weight": numbers(4, 12, 12),
    }
    modules = {"transformer.h.0.attn.c_attn": (2, 4.0), "transformer.h.0.attn.c_proj": (2, 4.0)}
    config = {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}
    make("gpt2", {"model_type": "gpt2", "n_head": 2}, model, modules, config, "transformer.")


if __name__ == "__main__":
    llama()
    gpt2()
    make_square()
    make_parts("llama_parts", load_file(HERE / "llama/model.safetensors"))
    make_parts("llama_parts_merged", load_file(HERE / "llama_merged.safetensors"))
