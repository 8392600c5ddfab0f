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
import itertools
import math
import platform
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import peft
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn

Items = dict[str, np.ndarray]

INPUTS, HIDDEN, OUTPUTS, ROWS, BATCHES = 12, 20, 7, 16, 4
STEPS, RECORDED_STEPS = 100, (1, 10, 100)
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01
LAYERS = ("layer1", "layer2")
SHORT_STEPS, SHORT_RECORDED = 50, (1, 50)


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


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], update: Callable[[], None], steps: int,
          recorded: Sequence[int]) -> Items:
    """Trains with `update`, which steps the factors along their gradients."""
    items: Items = {}
    train_losses = []
    for step in range(1, steps + 1):
        x, t = batches[(step - 1) % BATCHES]
        model.zero_grad()
        loss = nn.functional.mse_loss(model(x), t)
        loss.backward()
        update()
        train_losses.append(loss.item())
        if step in recorded:
            with torch.no_grad():
                items[f"loss.step{step}"] = matrix(nn.functional.mse_loss(model(batches[0][0]), batches[0][1]))
            items |= {f"{name}.step{step}": matrix(p.T) for name, p in factors(model).items()}
    items["train_losses"] = matrix(torch.tensor(train_losses, dtype=batches[0][0].dtype)).T
    return items


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

    items |= train(model, batches, optimizer.step, STEPS, RECORDED_STEPS)
    merged = model.merge_and_unload()
    items["layer1.merged"], items["merged.Y"] = matrix(merged.layer1.weight.T), matrix(merged(batches[0][0]))
    return items


# ---- LoRA-Pro, PEFT's LoRA-FA and PEFT's LoRA-GA in training --------------------------------------------------------


class ProCase(NamedTuple):
    """LoRA-Pro as its authors release it (mrflogs/LoRA-Pro): peta/optim.py, or their patched DeepSpeed."""

    mode: str
    freedom: str
    learning_rate: float
    weight_decay: float = 0.0
    deepspeed: bool = False
    zero_b: bool = False

    @property
    def name(self) -> str:
        return "_".join([self.mode, self.freedom] + ["deepspeed"] * self.deepspeed + ["zero_b"] * self.zero_b)


PRO_CASES = (
    *(ProCase("sgd", freedom, 0.1) for freedom in ("zero", "sylvester", "symmetry")),
    *(ProCase("efficient", freedom, 1e-2, WEIGHT_DECAY) for freedom in ("zero", "sylvester", "symmetry")),
    *(ProCase("full", freedom, 2e-3, WEIGHT_DECAY) for freedom in ("zero", "sylvester", "symmetry")),
    ProCase("full", "sylvester", 2e-3, deepspeed=True),
    ProCase("efficient", "sylvester", 1e-2, WEIGHT_DECAY, zero_b=True),
)


class ReleasedLoraPro:
    """The formulas of the released code in words of our own. Layout as in PyTorch: A is r x n, B is m x r.

    Their moments of mode full are bfloat16; here they have the precision of the factors, so that what is compared
    are formulas. Their weight decay of mode full also shrinks the base; here, as everywhere else, the base is frozen.
    """

    SHIFT = 1e-8  # added to both Gram matrices before they are inverted; the Sylvester equation does not see it

    def __init__(self, case: ProCase, model: nn.Module) -> None:
        self.case = case
        self.scale = layer(model, "layer1").scaling["default"]
        named = factors(model)
        self.pairs = [(named[f"{name}.A"], named[f"{name}.B"]) for name in LAYERS]
        # DeepSpeed's counter is raised before the step and once more inside it: its first step is the second.
        self.count = 1 if case.deepspeed else 0
        self.moments: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def directions(self, A: Tensor, B: Tensor, grad_A: Tensor, grad_B: Tensor, freedom: str) -> tuple[Tensor, Tensor]:
        weight = 1 / self.scale**2
        gram_A, gram_B, one = A @ A.T, B.T @ B, torch.eye(A.shape[0], dtype=A.dtype)
        inverse_A = torch.linalg.pinv(gram_A + self.SHIFT * one)
        inverse_B = torch.linalg.pinv(gram_B + self.SHIFT * one)
        step_A = weight * inverse_B @ grad_A
        step_B = weight * (grad_B - B @ (inverse_B @ (B.T @ grad_B))) @ inverse_A
        if freedom == "zero":
            return step_A, step_B
        if freedom == "sylvester":  # gram_B C + C gram_A = -step_A A^T, as one linear system for C row by row
            system = torch.kron(gram_B, one) + torch.kron(one, gram_A)
            C = torch.linalg.solve(system, -(step_A @ A.T).reshape(-1)).reshape(one.shape)
        else:  # their symmetric choice: it multiplies by A A^T where its inverse belongs
            C = -weight / 2 * inverse_B @ (B.T @ grad_B) @ gram_A
        return step_A + C @ A, step_B - B @ C

    def adam(self, key: tuple[int, int], gradient: Tensor) -> Tensor:
        zero = torch.zeros_like
        mean, square = self.moments.setdefault(key, (zero(gradient), zero(gradient)))
        mean.lerp_(gradient, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = square.sqrt() / math.sqrt(1 - BETAS[1] ** self.count)
        return mean / (1 - BETAS[0] ** self.count) / (root + EPS)

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        mode, freedom, rate = self.case.mode, self.case.freedom, self.case.learning_rate
        for i, (A, B) in enumerate(self.pairs):
            keep = 1 - rate * self.case.weight_decay
            if mode == "full":
                step_A, step_B = self.directions(A, B, A.grad, B.grad, "zero")
                g = self.adam((i, 0), self.scale * (B @ step_A + step_B @ A))
                steps = self.directions(A, B, self.scale * B.T @ g, self.scale * g @ A.T, freedom)
                keep = math.sqrt(keep)
            else:
                steps = self.directions(A, B, A.grad, B.grad, freedom)
                if mode == "efficient":
                    steps = tuple(self.adam((i, j), step) for j, step in enumerate(steps))
            for parameter, step in zip((A, B), steps):
                parameter.mul_(keep).sub_(rate * step)


START = CASES[1]  # of the short runs: s = alpha / sqrt(r), neither 1 nor the 2 of the released code


def with_prefix(prefix: str, items: Items) -> Items:
    return {f"{prefix}.{name}": value for name, value in items.items()}


def run_lora_pro(seed: int, dtype: torch.dtype) -> Items:
    items: Items = {}
    for case in PRO_CASES:
        if case.zero_b and dtype != torch.float64:
            continue  # from B = 0 rounding grows: with seed 42 float32 and float64 differ by 4e-4 after 50 steps
        model, batches = make_start(START, seed, dtype)
        if case.zero_b:
            for name, parameter in factors(model).items():
                if name.endswith(".B"):
                    nn.init.zeros_(parameter)
        rates = {"learning_rate": case.learning_rate, "weight_decay": case.weight_decay}
        items |= with_prefix(case.name, {name: np.full((1, 1), rate) for name, rate in rates.items()})
        update = ReleasedLoraPro(case, model).step
        items |= with_prefix(case.name, train(model, batches, update, SHORT_STEPS, SHORT_RECORDED))
    return items


def run_lora_fa(seed: int, dtype: torch.dtype) -> Items:
    """PEFT's optimizer with what differs from AdamW taken out: its epsilon, which is not bias-corrected, is made
    negligible, there is no weight decay (PEFT decays after the step), and the projection is not rounded to bfloat16."""
    model, batches = make_start(START, seed, dtype)
    values = {"learning_rate": 1e-2, "eps": 1e-30}
    optimizer = create_lorafa_optimizer(model, START.rank, START.alpha, values["learning_rate"])
    optimizer.param_groups[0]["eps"] = values["eps"]
    items = {key: np.full((1, 1), value) for key, value in values.items()}
    with mock.patch("peft.optimizers.lorafa.is_bf16_available", return_value=False):
        return items | train(model, batches, optimizer.step, SHORT_STEPS, SHORT_RECORDED)


def run_lora_ga(seed: int, dtype: torch.dtype) -> Items:
    """The four batches give the gradients, PEFT the start and the offset base, AdamW the training."""
    adapted, batches = make_start(START, seed, dtype)
    model = adapted.unload()
    config = peft.LoraConfig(r=START.rank, lora_alpha=START.alpha, use_rslora=START.rank_stabilized,
                             target_modules=list(LAYERS), init_lora_weights="lora_ga",
                             lora_ga_config=LoraGAConfig(direction="ArB2r", scale="stable"))

    def gradients() -> None:
        for x, t in batches:
            nn.functional.mse_loss(model(x.clone().requires_grad_()), t).backward()

    preprocess_loraga(model, config, gradients)
    model = peft.get_peft_model(model, config)
    items = {name: matrix(p.T) for name, p in factors(model).items()}
    values = {"learning_rate": 1e-2, "weight_decay": 0.0}
    items |= {key: np.full((1, 1), value) for key, value in values.items()}
    optimizer = torch.optim.AdamW(factors(model).values(), lr=values["learning_rate"], betas=BETAS, eps=EPS,
                                  weight_decay=values["weight_decay"])
    return items | train(model, batches, optimizer.step, SHORT_STEPS, SHORT_RECORDED)


# ---- starts of one layer --------------------------------------------------------------------------------------------

N, M, RANK, ALPHA, GAMMA = 20, 14, 3, 5, 9
DIRECTIONS, SIZES = ("ArB2r", "A2rBr", "ArBr", "random"), ("stable", "gd_scale", "weight_svd", "unit")


def with_spectrum(rows: int, cols: int, values: Tensor) -> Tensor:
    """A random matrix with these singular values, in double."""
    left, right = (torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64)).Q for size in (rows, cols))
    return left @ torch.diag(values) @ right.T


def make_layer(seed: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """W0 and two batches (X, dY) in float32.

    The spectra of W0 and of the mean gradient fall by a constant factor: PEFT's SVDs are randomised, that of W0
    without oversampling. Each batch has half of the rows of X and dY, which make the mean gradient.
    """
    torch.manual_seed(seed)
    weight = with_spectrum(N, M, 2 * 0.6 ** torch.arange(M, dtype=torch.float64))
    left, right, mix = (torch.linalg.qr(torch.randn(size, M, dtype=torch.float64)).Q for size in (N, M, M))
    X = math.sqrt(2) * mix @ left.T
    dY = math.sqrt(2) * mix @ torch.diag(0.3 * 0.6 ** torch.arange(M, dtype=torch.float64)) @ right.T
    batches = [(X[half].float(), dY[half].float()) for half in (slice(0, M // 2), slice(M // 2, M))]
    return weight.float(), batches


def peft_start(seed: int, **options: object) -> Items:
    """PEFT's factors and offset base; for LoRA-GA's random direction also the indices that it drew."""
    W0, batches = make_layer(seed)
    model = nn.Sequential(OrderedDict(linear=nn.Linear(N, M, bias=False)))
    model.linear.weight.data = W0.T.contiguous()
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=True, target_modules=["linear"], **options)
    if config.lora_ga_config is not None:

        def gradients() -> None:
            for x, dy in batches:
                (model(x.clone().requires_grad_()) * dy).sum().backward()

        preprocess_loraga(model, config, gradients)
    drawn: list[Tensor] = []
    permute = torch.randperm

    def recording_permute(*arguments: int) -> Tensor:
        drawn.append(permute(*arguments))
        return drawn[-1]

    with mock.patch("torch.randperm", recording_permute):
        linear = peft.get_peft_model(model, config).base_model.model.linear
    items = {key: matrix(getattr(linear, f"lora_{key}")["default"].weight.T) for key in "AB"}
    items["base"] = matrix(linear.base_layer.weight.T)
    if drawn:
        items["indices"] = matrix(drawn[0][:RANK].double())
    return items


def peft_starts(seed: int) -> Items:
    W0, batches = make_layer(seed)
    settings = {"rank": RANK, "alpha": ALPHA, "gamma": GAMMA}
    items = {key: np.full((1, 1), value, dtype=np.float64) for key, value in settings.items()}
    items["W0"] = matrix(W0)
    for i, (x, dy) in enumerate(batches):
        items[f"batch{i}.X"], items[f"batch{i}.dY"] = matrix(x), matrix(dy)
    for direction, size in itertools.product(DIRECTIONS, SIZES):
        options = LoraGAConfig(direction=direction, scale=size, stable_gamma=GAMMA)
        items |= with_prefix(f"{direction}.{size}",
                             peft_start(seed, init_lora_weights="lora_ga", lora_ga_config=options))
    for method in ("pissa", "olora"):
        items |= with_prefix(method, peft_start(seed, init_lora_weights=method))
    return items


def exact_starts(seed: int) -> Items:
    """The same starts and those of LoRA-GA's authors after the formulas, from full decompositions in double."""
    W0, batches = make_layer(seed)
    weight = W0.double().numpy()
    gradient = sum(x.double().numpy().T @ dy.double().numpy() for x, dy in batches) / len(batches)
    s = ALPHA / math.sqrt(RANK)
    U, S, Vt = np.linalg.svd(gradient, full_matrices=False)
    P, sigma, Qt = np.linalg.svd(weight, full_matrices=False)

    first, second = list(range(RANK)), list(range(RANK, 2 * RANK))
    bands = {"ArB2r": (first, second), "A2rBr": (second, first),
             "ArBr": (list(range(1, 2 * RANK, 2)), list(range(0, 2 * RANK, 2)))}
    stable = M**0.25 / math.sqrt(GAMMA)
    items: Items = {}
    for direction, (a, b) in bands.items():
        mean = np.sqrt(sigma[:RANK] / s).mean()
        authors = {"stable": stable, "gd_scale": 1 / s, "weight_svd": mean, "unit": 1.0}
        for size, factor in authors.items():
            items |= with_prefix(f"authors.{direction}.{size}", {"A": factor * U[:, a], "B": factor * Vt[b]})
        B = S[b, None] * Vt[b]
        sizes = {"stable": (1.0, stable), "gd_scale": (1 / s, 1 / s), "weight_svd": (1.0, sigma[0] / S[b[0]]),
                 "unit": (1.0, 1.0)}
        for size, (factor_a, factor_b) in sizes.items():
            items |= with_prefix(f"peft.{direction}.{size}", {"A": factor_a * U[:, a], "B": factor_b * B})
    root = np.sqrt(sigma[:RANK] / s)
    items |= {"pissa.A": P[:, :RANK] * root, "pissa.B": root[:, None] * Qt[:RANK]}
    Q, R = np.linalg.qr(weight.T)
    return items | {"olora.A": R[:RANK].T, "olora.B": Q[:, :RANK].T}


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

    def both(name: str, make: Callable[[torch.dtype], Items]) -> None:
        results = {precision: make(getattr(torch, precision)) for precision in ("float32", "float64")}
        for precision, items in results.items():
            write(options.out / f"{name}_{precision}.txt", options.seed, items)
        error, item = max((np.linalg.norm(results["float32"][item] - value) / np.linalg.norm(value), item)
                          for item, value in results["float64"].items() if item in results["float32"] and value.any())
        print(f"{name}: float32 against float64, largest relative difference {error:.2e} ({item})")

    for case in CASES:
        both(case.name, lambda dtype, case=case: run(case, options.seed, dtype))
    both("lora_pro", lambda dtype: run_lora_pro(options.seed, dtype))
    both("lora_fa", lambda dtype: run_lora_fa(options.seed, dtype))
    write(options.out / "lora_ga_float32.txt", options.seed, run_lora_ga(options.seed, torch.float32))
    write(options.out / "starts_float32.txt", options.seed, peft_starts(options.seed))
    write(options.out / "starts_float64.txt", options.seed, exact_starts(options.seed))


if __name__ == "__main__":
    main()
