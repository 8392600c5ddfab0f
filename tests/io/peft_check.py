#!/usr/bin/env python3
"""Open adapters that we wrote in the real PEFT: peft_check.py FOLDER.

FOLDER/<case>/ is an adapter, FOLDER/<case>/delta.safetensors what it must add to each module, [in, out]. For each
case: a model of those modules (GPT-2's Conv1D where the config says fan_in_fan_out), no missing and no unexpected
key, no warning, the right modules, their delta weights within BOUND (relative in norm).
"""

import sys
import warnings
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

BOUND = 1e-6


def model_of(shapes: dict[str, tuple[int, int]], conv: bool) -> nn.Module:
    """Linear modules (in, out) under dotted names, and one beside them that no adapter may touch."""
    root = nn.Module()
    for name, (n, m) in (*shapes.items(), ("untouched", (3, 3))):
        *parents, last = name.split(".")
        parent = root
        for part in parents:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, Conv1D(m, n) if conv else nn.Linear(n, m))
    return root


def check(folder: Path) -> float:
    expected = load_file(folder / "delta.safetensors")
    name = "default" if (folder / "adapter_config.json").exists() else "second"
    where = folder if name == "default" else folder / name
    config = peft.PeftConfig.from_pretrained(where)
    base = model_of({key: tuple(value.shape) for key, value in expected.items()}, config.fan_in_fan_out)
    model = peft.PeftModel.from_pretrained(base, where, adapter_name=name)
    result = model.load_adapter(where, adapter_name="again")
    missing = [key for key in result.missing_keys if "again" in key]
    assert not missing and not result.unexpected_keys, (missing, result.unexpected_keys)
    layers = {key: module for key, module in base.named_modules() if isinstance(module, LoraLayer)}
    assert set(layers) == set(expected), set(layers) ^ set(expected)
    worst = 0.0
    for key, layer in layers.items():
        delta = layer.get_delta_weight(name).detach().double()
        delta = delta if config.fan_in_fan_out else delta.T
        worst = max(worst, float((delta - expected[key]).norm() / expected[key].norm()))
    assert worst < BOUND, worst
    return worst


if __name__ == "__main__":
    warnings.simplefilter("error")
    cases = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    assert cases, "no adapter found"
    print(f"peft {peft.__version__}, torch {torch.__version__}")
    for case in cases:
        print(f"{case.name}: largest relative difference {check(case):.1e}")
