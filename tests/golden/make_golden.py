#!/usr/bin/env python3
"""Make the golden data of the parity test with the real PyTorch and PEFT.

Model: Y = layer2(tanh(layer1(X))), two nn.Linear with bias (12 -> 20 -> 7), both adapted by PEFT's
LoRA. Loss: the mean over all b x 7 elements of (Y - T)^2.

Notation (row vectors, one sample a row): a layer is  Y = X (W0 + s A B) + bias  with
W0 n x m, A n x r, B r x m, bias 1 x m. PyTorch keeps the transposes, so that here
W0 = weight^T, A = lora_A.weight^T, B = lora_B.weight^T. B starts at small random values: at B = 0 the
gradient of A would be zero.

Cases (CASES below), each in float32 and float64 from the same start, drawn in float32: lora with
s = alpha / r and torch.optim.AdamW; lora_plus with s = alpha / sqrt(r) and PEFT's LoRA+ on AdamW.
There are four batches. Forward and backward are recorded on batch 0 at the start. Training then begins
from that same start; step t = 1, 2, ..., 100 uses batch (t - 1) mod 4.

A file is plain text: comments (#), then items: a line `name rows cols`, then one line per matrix row.
"""

import argparse
import platform
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn

Items = dict[str, np.ndarray]

INPUTS, HIDDEN, OUTPUTS, ROWS, BATCHES = 12, 20, 7, 16, 4
STEPS, RECORDED_STEPS = 100, (1, 10, 100)
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01
LAYERS = ("layer1", "layer2")


class Case(NamedTuple):
    """One configuration; ratio is (learning rate of B) / (learning rate of A)."""

    name: str
    rank: int
    alpha: int
    rank_stabilized: bool
    learning_rate: float
    ratio: float


CASES = (
    Case("lora", rank=4, alpha=8, rank_stabilized=False, learning_rate=1e-2, ratio=1.0),
    Case("lora_plus", rank=3, alpha=5, rank_stabilized=True, learning_rate=2e-3, ratio=16.0),
)


def matrix(tensor: Tensor) -> np.ndarray:
    """A copy of a scalar, vector or matrix as a two-dimensional array."""
    return np.atleast_2d(tensor.detach().numpy().copy())


def layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(f"base_model.model.{name}")


def factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The four trainable parameters under our names."""
    return {f"{name}.{key}": getattr(layer(model, name), f"lora_{key}")["default"].weight
            for name in LAYERS for key in "AB"}


def make_start(case: Case, seed: int, dtype: torch.dtype) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The adapted model and the batches (X, T): the same numbers for either dtype."""
    torch.manual_seed(seed)
    modules = OrderedDict(layer1=nn.Linear(INPUTS, HIDDEN), tanh=nn.Tanh(), layer2=nn.Linear(HIDDEN, OUTPUTS))
    config = peft.LoraConfig(r=case.rank, lora_alpha=case.alpha, use_rslora=case.rank_stabilized,
                             target_modules=list(LAYERS))
    model = peft.get_peft_model(nn.Sequential(modules), config)
    for name, parameter in factors(model).items():
        if name.endswith(".B"):
            nn.init.normal_(parameter, std=0.1)
    batches = [(torch.randn(ROWS, INPUTS).to(dtype), torch.randn(ROWS, OUTPUTS).to(dtype))
               for _ in range(BATCHES)]
    return model.to(dtype), batches


def make_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    common = {"lr": case.learning_rate, "betas": BETAS, "eps": EPS}
    if case.ratio == 1.0:
        return torch.optim.AdamW(factors(model).values(), weight_decay=WEIGHT_DECAY, **common)
    # A plain weight_decay= would be overruled: PEFT sets it per group from loraplus_weight_decay (default 0).
    return create_loraplus_optimizer(model, torch.optim.AdamW, loraplus_lr_ratio=case.ratio,
                                     loraplus_weight_decay=WEIGHT_DECAY, **common)


def settings(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer) -> Items:
    values = {key: value for key, value in case._asdict().items() if key != "name"}
    values |= {"weight_decay": WEIGHT_DECAY, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "steps": STEPS,
               "scale": layer(model, "layer1").scaling["default"]}
    # What the optimizer really uses for each factor, read back from its parameter groups.
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in factors(model).items():
        group = group_of.pop(id(parameter))
        values |= {f"{name}.learning_rate": group["lr"], f"{name}.weight_decay": group["weight_decay"]}
    assert not group_of, "the optimizer must train the factors only"
    return {key: np.full((1, 1), value, dtype=np.float64) for key, value in values.items()}


def run(case: Case, seed: int, dtype: torch.dtype) -> Items:
    """Every item of one file, in the order of the file."""
    model, batches = make_start(case, seed, dtype)
    optimizer = make_optimizer(case, model)
    items = settings(case, model, optimizer)
    for name in LAYERS:
        items[f"{name}.W0"] = matrix(layer(model, name).base_layer.weight.T)
        items[f"{name}.bias"] = matrix(layer(model, name).base_layer.bias)
    items |= {name: matrix(p.T) for name, p in factors(model).items()}
    for i, (x, t) in enumerate(batches):
        items[f"batch{i}.X"], items[f"batch{i}.T"] = matrix(x), matrix(t)

    x0, t0 = batches[0][0].clone().requires_grad_(), batches[0][1]
    y = model(x0)
    loss = nn.functional.mse_loss(y, t0)
    loss.backward()
    items["Y"], items["loss"], items["dX"] = matrix(y), matrix(loss), matrix(x0.grad)
    items |= {f"{name}.grad": matrix(p.grad.T) for name, p in factors(model).items()}

    train_losses = []
    for step in range(1, STEPS + 1):
        x, t = batches[(step - 1) % BATCHES]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), t)
        loss.backward()
        optimizer.step()
        train_losses.append(loss.item())
        if step in RECORDED_STEPS:
            with torch.no_grad():
                items[f"loss.step{step}"] = matrix(nn.functional.mse_loss(model(batches[0][0]), t0))
            items |= {f"{name}.step{step}": matrix(p.T) for name, p in factors(model).items()}
    items["train_losses"] = matrix(torch.tensor(train_losses, dtype=dtype)).T

    merged = model.merge_and_unload()
    items["layer1.merged"], items["merged.Y"] = matrix(merged.layer1.weight.T), matrix(merged(batches[0][0]))
    return items


def write(path: Path, seed: int, items: Items) -> None:
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(f"# torch {torch.__version__}, peft {peft.__version__}, numpy {np.__version__}, "
                   f"python {platform.python_version()}\n# seed {seed}; python make_golden.py --seed {seed}\n")
        for name, values in items.items():
            digits = ".9g" if values.dtype == np.float32 else ".17g"
            file.write(f"{name} {values.shape[0]} {values.shape[1]}\n")
            file.writelines(" ".join(format(float(v), digits) for v in row) + "\n" for row in values)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden data of the PyTorch and PEFT parity test.")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="directory of the files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for case in CASES:
        results = {name: run(case, options.seed, getattr(torch, name)) for name in ("float32", "float64")}
        for precision, items in results.items():
            write(options.out / f"{case.name}_{precision}.txt", options.seed, items)
        error, name = max((np.linalg.norm(results["float32"][name] - value) / np.linalg.norm(value), name)
                          for name, value in results["float64"].items() if value.any())
        print(f"{case.name}: float32 against float64, largest relative difference {error:.2e} ({name})")


if __name__ == "__main__":
    main()
