#!/usr/bin/env python3
"""Times the same work in PyTorch + PEFT and in lora.hpp, in one run and on the same threads, and prints the ratios.

Both sides take turns: a few calls of PyTorch, a few calls of ours (worker.cpp, a process of its own), again and again;
every number is a median over these rounds. README.md says what is measured and how to read it.
"""

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CPUS = os.sched_getaffinity(0)
# Before torch loads OpenMP. Each thread keeps a core: left alone, Linux may run two spinning threads on one core.
os.environ.setdefault("OMP_PROC_BIND", "close")
os.environ.setdefault("OMP_PLACES", "cores")
try:
    import peft
    import torch
    from torch import nn
except ImportError as missing:
    sys.exit(f"compare.py needs PyTorch and PEFT ({missing}):  pip install torch==2.13.0 peft")
BOUND = os.sched_getaffinity(0)  # where OpenMP has put this thread
sys.dont_write_bytecode = True
from pro_torch import FACTORS_SIZE, RATE, SCALE, BestPro, ReleasedPro, check_writings, pro_start  # noqa: E402

WIDTHS = [(576, 576), (576, 1536), (1024, 1024), (2048, 2048), (4096, 4096), (1000, 777)]
TOKENS, RANKS = [1, 4, 16, 64, 256, 1024], [8, 16, 64]

# b, n, m, r
QUICK = {
    "step": [(16, 256, 256, 8), (16, 100, 77, 8)],
    "products": [(16, 512, 512, 1)],
    "merged": [(1, 512, 512, 8)],
    "start": [(64, 512, 512, 8)],
    "pro": [(0, 512, 512, 8)],
    "layer": [(64, 512, 512, 8)],
}
DEFAULT = {
    "step": [*((b, n, m, 16) for n, m in ((576, 1536), (1024, 1024), (4096, 4096)) for b in (1, 16, 256)),
             (1024, 2048, 2048, 16), (256, 1000, 777, 16), (256, 1024, 1024, 8), (256, 1024, 1024, 64)],
    "products": [(b, n, n, 1) for n in (1024, 4096) for b in (1, 16, 256)],
    "merged": [(b, n, n, 16) for n in (1024, 4096) for b in (1, 2, 3, 4)],
    "start": [(512, 4096, 4096, 16)],
    "pro": [(0, 2048, 2048, 16), (0, 2048, 2048, 64)],
    "layer": [(512, 2048, 2048, 16)],
}
FULL = DEFAULT | {
    "step": [(b, n, m, r) for (n, m), r, b in itertools.product(WIDTHS, RANKS, TOKENS)],
    "products": [(b, n, m, 1) for (n, m), b in itertools.product(WIDTHS, TOKENS)],
    "merged": [(b, n, m, 16) for (n, m), b in itertools.product(WIDTHS, (1, 2, 3, 4))],
    "pro": [(0, n, n, r) for n in (2048, 4096) for r in (16, 64)],
}
MODES = ("sgd", "efficient", "factored", "full")


# ---- both sides -----------------------------------------------------------------------------------------------------


class Worker:
    """Our side, see worker.cpp. One thread is not tied to a core: it may move away from other programs."""

    def __init__(self, path, threads):
        bind = {"OMP_NUM_THREADS": str(threads)} | ({"OMP_PROC_BIND": "false"} if threads == 1 else {})
        self.process = subprocess.Popen([path, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | bind, preexec_fn=lambda: os.sched_setaffinity(0, CPUS))

    def ask(self, line):
        if self.process.poll() is None:
            print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer or answer.startswith("error: "):
            sys.exit(f"worker: {line}: {answer or 'it has ended'}")
        return answer

    def clock(self, command, repetitions):
        return float(self.ask(f"{command} {repetitions}"))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def clock(call, repetitions):
    """The median time of one call, as the worker takes it."""
    begin = time.perf_counter()
    call()
    while time.perf_counter() < begin + 5e-3:
        call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Run:
    """Measures with one number of threads."""

    def __init__(self, options, threads):
        self.rounds, self.turn = (3, 5e-3) if options.quick else (options.rounds, 30e-3)
        self.threads, self.worker = threads, Worker(options.worker, threads)
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, CPUS if threads == 1 else BOUND)

    def settle(self):
        """Until the threads of the side that has finished have gone to sleep: GNU's OpenMP spins for some 10 ms."""
        if self.threads > 1:
            time.sleep(25e-3)

    def best(self, candidates):
        """The fastest way to write the same thing in PyTorch."""
        if len(candidates) == 1:
            return next(iter(candidates))
        self.settle()
        trials = [(clock(call, 3), name) for _ in range(3) for name, call in candidates.items()]
        return min(trials)[1]

    def measure(self, theirs, commands):
        """The times of every round by name; of several candidates of PyTorch's only the best one takes part."""
        choice = {name: self.best(candidates) for name, candidates in theirs.items()}
        sides = [{name: functools.partial(clock, theirs[name][choice[name]]) for name in theirs},
                 {name: functools.partial(self.worker.clock, command) for name, command in commands.items()}]
        counts, times = {}, {}
        for current in range(-1, self.rounds):
            for side in sides if current % 2 else reversed(sides):
                self.settle()
                names = list(side)
                shift = current % max(1, len(names))
                for name in names[shift:] + names[:shift]:
                    seconds = side[name](counts.get(name, 1))
                    if current < 0:  # the first round only finds out how many calls fill a turn
                        counts[name] = max(1, min(500, round(self.turn / seconds)))
                    else:
                        times.setdefault(name, []).append(seconds)
        self.worker.ask("clear")
        return choice, times


# ---- what PyTorch does ----------------------------------------------------------------------------------------------


def peft_layer(b, n, m, r, dtype):
    model = nn.Sequential(OrderedDict(linear=nn.Linear(n, m, bias=False))).to(dtype)
    config = peft.LoraConfig(r=r, lora_alpha=SCALE * r, target_modules=["linear"])
    model = peft.get_peft_model(model, config)  # the factors are float, whatever the model is
    layer = model.base_model.model.linear
    nn.init.uniform_(layer.lora_B["default"].weight, -FACTORS_SIZE, FACTORS_SIZE)
    return model, layer, torch.randn(b, n, dtype=dtype), torch.randn(b, m, dtype=dtype)


def step_calls(b, n, m, r, dtype):
    """A training step of the layer, as the parts of a network are called; AdamW in its three writings."""
    _, layer, X, dY = peft_layer(b, n, m, r, dtype)
    X.requires_grad_()
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]

    def step(optimizer):
        optimizer.zero_grad(set_to_none=True)
        X.grad = None
        layer(X).backward(dY)
        optimizer.step()

    writings = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    optimizers = {name: torch.optim.AdamW(factors, lr=RATE, weight_decay=0, **how) for name, how in writings.items()}
    return {name: functools.partial(step, optimizer) for name, optimizer in optimizers.items()}


def product_calls(b, n, m, dtype):
    X, dY, W = torch.randn(b, n, dtype=dtype), torch.randn(b, m, dtype=dtype), torch.randn(m, n, dtype=dtype)
    Y, dX = torch.empty_like(dY), torch.empty_like(X)
    return {"forward": {"linear": lambda: nn.functional.linear(X, W), "out": lambda: torch.mm(X, W.T, out=Y)},
            "backward": {"new": lambda: dY @ W, "out": lambda: torch.mm(dY, W, out=dX)}}


def merged_call(b, n, m, r, dtype):
    model, _, X, _ = peft_layer(b, n, m, r, dtype)
    linear = model.merge_and_unload().linear
    return {"merged": lambda: linear(X)}


# ---- the sections ---------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A row of a table."""

    name: str
    theirs: dict[str, dict[str, Callable]]  # by column, each with its candidates
    ours: dict[str, str]  # commands by column
    ratios: dict[str, tuple[str, str]]  # columns to divide
    energy: dict[str, float] = {}


BASES = ("plain", "packed", "bf16")
BASE_RATIOS = {f"torch/{base}": ("torch", base) for base in BASES} | {"torch bf16/bf16": ("torch bf16", "bf16")}
BOUND_RATIOS = {f"{side}/bound": (side, "bound") for side in ("torch", "packed")}  # 1: every multiply-add at the peak


def on_bases(what, shape):
    return {base: " ".join(map(str, (what, base, *shape))) for base in BASES}


def in_both(calls):
    return {"torch": calls(torch.float32), "torch bf16": calls(torch.bfloat16)}


def step(run, *shape):
    ours = on_bases("step", shape) | {"bound": " ".join(map(str, ("bound step", *shape)))}
    yield Case("", in_both(lambda dtype: step_calls(*shape, dtype)), ours, BASE_RATIOS | BOUND_RATIOS)


def products(run, b, n, m, r):
    calls = in_both(lambda dtype: product_calls(b, n, m, dtype))
    for which in ("forward", "backward"):
        theirs = {column: both[which] for column, both in calls.items()}
        ours = on_bases(which, (b, n, m, r)) | {"bound": f"bound forward {b} {n} {m} {r}"}
        yield Case(which, theirs, ours, BASE_RATIOS | BOUND_RATIOS)


def merged(run, *shape):
    yield Case("", in_both(lambda dtype: merged_call(*shape, dtype)), on_bases("merged", shape), BASE_RATIOS)


def start(run, b, n, m, r):
    X, dY = (torch.randn(b, size) / torch.arange(1, size + 1) ** 0.5 for size in (n, m))  # a spectrum that falls
    with tempfile.NamedTemporaryFile() as file:
        X.numpy().tofile(file)
        dY.numpy().tofile(file)
        file.flush()
        run.worker.ask(f"load {file.name} {b} {n} {m}")

    def peft_start():
        return torch.svd_lowrank(dY.T @ X, q=min(4 * r, n, m), niter=4)  # as PEFT's lora_ga_init

    G, (U, S, V) = (dY.T @ X).double(), (x[..., : 2 * r].double() for x in peft_start())
    triangles = [torch.linalg.qr(rows.T.double()).R for rows in (X, dY)]
    most = torch.linalg.svdvals(triangles[0] @ triangles[1].T)[: 2 * r].norm() / G.norm()
    energy = {"possible": most.item() ** 2, "torch": 1 - ((G - U * S @ V.T).norm() / G.norm()).item() ** 2}
    ours = {f"ours, {q} it.": f"{q} {b} {n} {m} {r}" for q in (2, 4)}
    energy |= {column: float(run.worker.ask(f"energy {command} 1")) for column, command in ours.items()}
    yield Case("", {"torch": {"svd_lowrank": peft_start}}, {column: f"start {what}" for column, what in ours.items()},
               {f"torch/{column}": ("torch", column) for column in ours}, energy)


def pro(run, b, n, m, r):
    check_writings()
    data = pro_start(n, m, r)
    for mode in MODES:
        theirs = {} if mode == "factored" else {"released": {"released": ReleasedPro(mode, *data)}}
        blocks = {"whole": None, "blocks of 256": 256, "blocks of 64": 64} if mode == "full" else {"best": None}
        theirs["best"] = {name: BestPro(mode, *data, block) for name, block in blocks.items()}
        yield Case(mode, theirs, {"ours": f"pro {mode} {b} {n} {m} {r}"},
                   {f"{column}/ours": (column, "ours") for column in ("released", "best")})


def layer(run, b, n, m, r):
    ours = {"AdamW": f"step packed {b} {n} {m} {r}"} | {mode: f"step_{mode} packed {b} {n} {m} {r}" for mode in MODES}
    yield Case("", {}, ours, {f"{mode}/AdamW": (mode, "AdamW") for mode in MODES})


SECTIONS = {
    "step": (step, "Training step of one layer: forward, backward with dX, AdamW"),
    "products": (products, "Products of the frozen weight alone"),
    "merged": (merged, "Inference with the adapter merged"),
    "start": (start, "LoRA-GA: from a batch to the 2r triplets"),
    "pro": (pro, "LoRA-Pro's step alone"),
    "layer": (layer, "Our layer's step (packed base) with LoRA-Pro, over that with AdamW"),
}


def report(run, name, shapes):
    """Measures a section, prints its rows, returns them."""
    function, title = SECTIONS[name]
    print(f"\n{title}; {run.threads} thread{'s'[: run.threads > 1]}; times in ms")
    results, columns = [], []
    for shape in shapes:
        for case in function(run, *shape):
            choice, times = run.measure(case.theirs, case.ours)
            medians = {column: statistics.median(values) for column, values in times.items()}
            ratios = {}
            for key, (over, under) in case.ratios.items():
                if over in times:
                    spread = statistics.quantiles(a / b for a, b in zip(times[over], times[under]))
                    ratios[key] = {"of_medians": medians[over] / medians[under], "quartiles_of_rounds": spread,
                                   "of_fastest": min(times[over]) / min(times[under])}
            results.append({"section": name, "threads": run.threads, "case": case.name, **dict(zip("bnmr", shape)),
                            "medians": medians, "ratios": ratios, "rounds": times, "torch_writing": choice,
                            "energy": case.energy})
            if not columns:
                columns = [*case.theirs, *case.ours, "|", *case.ratios]
                head = "".join(f"{column.removeprefix('torch/'):>{width(column)}}" for column in columns)
                print(f"{'':10}{'b':>5}{'n':>6}{'m':>6}{'r':>4} |{head}")
            cells = {column: f"{1e3 * seconds:.3f}" for column, seconds in medians.items()} | {"|": "|"}
            cells |= {key: f"{ratio['of_medians']:.2f}" for key, ratio in ratios.items()}
            row = "".join(f"{cells.get(column, '-'):>{width(column)}}" for column in columns)
            print("{:10}{:>5}{:6}{:6}{:4} |".format(case.name, shape[0] or "-", *shape[1:]) + row, flush=True)
            if case.energy:
                shares = "; ".join(f"{column} {share:.5f}" for column, share in case.energy.items())
                print(f"share of ||G||^2 in the 2r triplets: {shares}")
    return results


def width(column):
    return 3 if column == "|" else max(11, len(column.removeprefix("torch/")) + 2)


def about():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return {"date": datetime.datetime.now().isoformat(timespec="seconds"), "command": sys.argv, "processor": processor,
            "cores": len(CPUS), "load_average": os.getloadavg(), "system": platform.platform(),
            "python": platform.python_version(), "torch": torch.__version__, "peft": peft.__version__,
            "torch_simd": torch.backends.cpu.get_cpu_capability(), "torch_build": torch.__config__.show(),
            "environment": {key: value for key, value in os.environ.items()
                            if key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_"))}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="small shapes, under half a minute: a smoke test")
    length.add_argument("--full", action="store_true", help="every shape: about an hour")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of %(default)s")
    parser.add_argument("--threads", help="numbers of threads (default: 1,2; with --quick 2)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: %(default)s)")
    parser.add_argument("--worker", default=Path(__file__).resolve().parents[2] / "build/bench/bench/peft/peft_worker",
                        type=Path, help="the program of worker.cpp (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all medians, rounds, versions and settings to this file")
    options = parser.parse_args()
    sections = options.sections.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    if not options.worker.is_file():
        parser.error(f"no worker at {options.worker}: build the target peft_worker, or give --worker")
    shapes = QUICK if options.quick else FULL if options.full else DEFAULT
    if options.threads:
        threads = [int(count) for count in options.threads.split(",")]
        if not all(1 <= count <= len(CPUS) for count in threads):
            parser.error(f"--threads must lie in [1, {len(CPUS)}], the cores of this machine")
    else:
        threads = [2] if options.quick else [1, 2]
        threads = sorted({min(count, len(CPUS)) for count in threads})

    record = about() | {"unit": "seconds", "worker": {}, "results": []}
    print("{processor}, {cores} cores, load {load_average[0]:.1f}; torch {torch} ({torch_simd}), peft {peft}; "
          "{environment}".format(**record))
    if record["load_average"][0] > 0.5:
        print("note: other programs are using this machine")
    torch.manual_seed(1)
    for count in threads:
        run = Run(options, count)
        info = record["worker"][count] = run.worker.ask("info")
        print(f"worker: {info}")
        if record["torch_simd"] == "AVX512" and "AVX512" not in info:
            print("note: PyTorch uses AVX-512 and the worker does not; configure with -DLORA_TUNED_ARCH=x86-64-v4")
        for name in sections:
            record["results"] += report(run, name, shapes[name])
        run.worker.close()
    record |= {"rounds": run.rounds, "seconds_a_turn": run.turn, "load_average_after": os.getloadavg()}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
