#!/usr/bin/env python3
"""Make two small models with transformers, and adapters on them with PEFT: make_models.py [--seed N] [--out DIR].

DIR/<model>/, for llama (saved in bfloat16) and gpt2 (in float32): config.json and model.safetensors with random
weights; <case>/: an adapter that PEFT trained for some steps and wrote for these weights, LoRA-GA and PiSSA through its
conversion; logits.safetensors: `tokens` [sequences, length], `base` and each <case> [tokens, vocabulary], what the
models in memory give in float32, and `losses`, [1 + cases]; metadata: the versions and the seed.
"""

import argparse
import os
import shutil
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SEED = 20
STEPS = 12
VOCABULARY, SEQUENCES, LENGTH = 64, 2, 7

# The weights are wider than usual, so that attention looks somewhere and an error anywhere shows in the logits.
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
    rope_parameters={"rope_theta": 100.0, "rope_type": "default"}, initializer_range=0.2, bos_token_id=0,
    eos_token_id=0,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=VOCABULARY, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2,
    bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip
MODELS = {
    "llama": {
        "make": lambda: LlamaForCausalLM(LLAMA).bfloat16(),
        "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "patterns": {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 3, r"layers\.1\.mlp\.down_proj": 4},
            "alpha_pattern": {r"^model.layers.0.self_attn.(q|v)_proj": 7, "down_proj": 2.5},
        },
    },
    "gpt2": {
        "make": lambda: GPT2LMHeadModel(GPT2),
        "all": ["c_attn", "c_proj", "c_fc"],
        "patterns": {
            "target_modules": ["c_attn", "c_proj"],
            "rank_pattern": {"mlp.c_proj": 3, r"h\.1\.attn\.c_(attn|proj)": 4},
            "alpha_pattern": {"attn.c_proj": 7, r"^transformer.h.0.mlp.c_proj": 2.5},
        },
    },
}
CASES = {
    "lora": {"r": 2, "lora_alpha": 4},
    "rslora": {"r": 3, "lora_alpha": 4, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 3},
    "lora_ga": {"r": 2, "lora_alpha": 4, "init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    "pissa": {"r": 2, "lora_alpha": 3, "init_lora_weights": "pissa"},
}


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens).loss


def random_model(kind: str, folder: Path) -> None:
    """Saved with weights that are all random: biases and norms too, which transformers sets to 0 and 1."""
    model = MODELS[kind]["make"]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def train(kind: str, case: str, base: Path, tokens: Tensor, folder: Path) -> nn.Module:
    """A PEFT model after some steps, and its adapter in `folder`, for the weights in `base`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.name_or_path = model.config._name_or_path = f"tiny-{kind}"
    options = {"target_modules": MODELS[kind]["all"], **CASES[case]}
    options |= MODELS[kind]["patterns"] if case == "patterns" else {}
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2", **options)
    model.eval()  # without dropout, also in training
    if case == "lora_ga":
        preprocess_loraga(model, config, lambda: loss_of(model, tokens).backward())
    model = peft.get_peft_model(model, config).eval()
    extra = {}
    if case in ("lora_ga", "pissa"):
        initial = folder.parent / f"{case}_initial"
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(initial, save_embedding_layers=False)
        extra["path_initial_model_for_weight_conversion"] = str(initial)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, tokens).backward()
        optimizer.step()
    model.save_pretrained(folder, save_embedding_layers=False, **extra)
    (folder / "README.md").unlink(missing_ok=True)
    if extra:
        shutil.rmtree(initial)
    return model


def make(kind: str, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    random_model(kind, folder)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))
    models = {"base": AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()}
    models |= {case: train(kind, case, folder, tokens, folder / case) for case in CASES}
    tensors, losses = {"tokens": tokens}, []
    with torch.no_grad():
        for name, model in models.items():
            tensors[name] = model(input_ids=tokens).logits.reshape(-1, VOCABULARY).contiguous()
            losses.append(loss_of(model, tokens))
            print(f"{kind} {name}: loss {losses[-1]:.3f}")
    tensors["losses"] = torch.stack(losses)
    versions = {package.__name__: package.__version__ for package in (peft, torch, transformers)}
    save_file(tensors, folder / "logits.safetensors", {**versions, "seed": str(seed)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT still asks for it
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # LoRA-GA's: it asks for no dX of a first layer
    warnings.filterwarnings("ignore", "Could not find a config file in tiny-")  # nor is there one
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for kind in MODELS:
        shutil.rmtree(options.out / kind, ignore_errors=True)
        make(kind, options.out / kind, options.seed)
