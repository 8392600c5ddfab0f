#!/usr/bin/env python3
"""Make the golden adapters with the real PEFT: peft/<case>/, what `save_pretrained` wrote (without README.md).

Beside each, delta.safetensors: by how much the merged weight of each module differs from the original base, in
double, [in, out]; metadata: the versions. Seed SEED. Model: two blocks of linear layers of 6 x 4 and 5 x 6; in
`conv1d` of GPT-2's Conv1D. Factors are random, B too: nothing is trained.
"""

import os
import shutil
import sys
from pathlib import Path

import peft
import safetensors
import torch
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SEED = 20
INPUTS, MIDDLE, OUTPUTS = 6, 5, 4
VERSIONS = {"peft": peft.__version__, "torch": torch.__version__, "safetensors": safetensors.__version__}


class Block(nn.Module):
    def __init__(self, conv: bool) -> None:
        super().__init__()
        linear = (lambda n, m: Conv1D(m, n)) if conv else nn.Linear
        self.q_proj, self.k_proj = linear(INPUTS, OUTPUTS), linear(INPUTS, OUTPUTS)
        self.up = linear(MIDDLE, INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q_proj(x) * self.k_proj(x)).sum() + self.up(x[:, :MIDDLE]).square().sum()


class Model(nn.Module):
    def __init__(self, conv: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(conv) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return sum(block(x) for block in self.layers)


CASES = {
    "lora": {"r": 3, "lora_alpha": 5, "task_type": "FEATURE_EXTRACTION"},
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True},
    "patterns": {"r": 3, "lora_alpha": 6, "rank_pattern": {"q_proj": 2, r"layers\.1\.up": 4},
                 "alpha_pattern": {r"^layers.0.(k|q)_proj": 1, "up": 2.5}},
    "lora_ga": {"r": 2, "lora_alpha": 4, "init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    "pissa": {"r": 2, "lora_alpha": 3, "use_rslora": True, "init_lora_weights": "pissa"},
    "conv1d": {"r": 2, "lora_alpha": 7, "fan_in_fan_out": True},
    "bf16": {"r": 3, "lora_alpha": 5},
    "named": {"r": 2, "lora_alpha": 2, "target_modules": "layers.*q_proj"},
}  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Of all modules, [in, out], in double."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    return {
        name: (module.weight if isinstance(module, Conv1D) else module.weight.T).detach().double().clone()
        for name, module in modules.items()
    }


def make(case: str, folder: Path) -> None:
    torch.manual_seed(SEED)
    options = {"target_modules": ["q_proj", "k_proj", "up"], **CASES[case]}
    model = Model(conv=case == "conv1d")
    if case == "bf16":
        model = model.bfloat16()
    before = weights(model)
    config = peft.LoraConfig(**options)
    name = "second" if case == "named" else "default"
    if case == "lora_ga":
        preprocess_loraga(model, config, lambda: model(torch.randn(8, INPUTS)).backward())
    model = peft.get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=case != "bf16")
    converted = case in ("lora_ga", "pissa")
    initial = folder.parent / f"{case}_initial"
    if converted:
        model.peft_config[name].init_lora_weights = True
        model.save_pretrained(initial)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    extra = {"path_initial_model_for_weight_conversion": str(initial)} if converted else {}
    model.save_pretrained(folder, **extra)
    for readme in folder.rglob("README.md"):
        os.remove(readme)
    if converted:
        shutil.rmtree(initial)
    model = model.double() if case != "bf16" else model.float().double()
    after = weights(model.merge_and_unload())
    delta = {key: (after[key] - before[key]).contiguous() for key in after if not torch.equal(after[key], before[key])}
    save_file(delta, folder / "delta.safetensors", VERSIONS)


if __name__ == "__main__":
    root = (Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent) / "peft"
    for case in CASES:
        shutil.rmtree(root / case, ignore_errors=True)
        make(case, root / case)
