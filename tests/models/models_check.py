#!/usr/bin/env python3
"""Open adapters of whole models, trained and written in C++, in the real PEFT: models_check.py FOLDER [MODELS].

FOLDER/<model>/<case>/ is an adapter for MODELS/<model> (made by make_models.py; data/ beside this file if not given),
FOLDER/<model>/logits.safetensors holds the logits that C++ computed with each. For each: no missing and no unexpected
key, no warning, the scales and ranks of the config, and equal logits within BOUND (relative in norm).
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BOUND = 1e-5
EFFECT = 0.05  # an adapter that does less would show nothing


def check(base: Path, adapter: Path, tokens: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(input_ids=tokens).logits.reshape(expected.shape)
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
        result = model.load_adapter(adapter, adapter_name="again")
        missing = [key for key in result.missing_keys if "again" in key]
        assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
        logits = model(input_ids=tokens).logits.reshape(expected.shape)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        modules = {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in file.keys()}
    adapted = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert modules == adapted, modules ^ adapted
    assert (before - expected).norm() / before.norm() > EFFECT
    difference = float((logits.double() - expected.double()).norm() / expected.double().norm())
    assert difference < BOUND, (adapter, difference)
    return difference, len(adapted)


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT still asks for it
    transformers.logging.disable_progress_bar()
    written = Path(sys.argv[1])
    models = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "data"
    print(f"peft {peft.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    for kind in ("llama", "gpt2"):
        tokens = load_file(models / kind / "logits.safetensors")["tokens"]
        logits = load_file(written / kind / "logits.safetensors")
        folders = sorted(path for path in (written / kind).iterdir() if path.is_dir())
        assert {path.name for path in folders} == set(logits) and logits, "every adapter needs its logits"
        for folder in folders:
            difference, count = check(models / kind, folder, tokens, logits[folder.name])
            print(f"{kind} {folder.name}: {count} modules, logits within {difference:.1e}")
