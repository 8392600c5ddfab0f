#!/usr/bin/env python3
"""Times the training of a language model's adapters in PyTorch + PEFT and in the program llm, and its memory.

Both sides train the same Llama on the same number of random tokens: LoRA of rank 8 on all linear layers, AdamW, clipped
gradients. They take turns, each time in a process of its own; speeds are medians over these rounds, and a round's is
the median over its steps. README.md says how to read the tables.
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, RATE, CLIP = 8, 16, 2e-4, 1.0
WARM_UP = 2  # steps that do not count
GROUPS = ("products", "attention", "head", "rest")
MIB = 2**20


# ---- PyTorch's side, in a process of its own ------------------------------------------------------------------------


def high_water() -> int:
    """The peak of this process's memory in bytes: since its start, or since `reset_high_water`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_high_water() -> None:
    """Forgets the peak of loading, which may hold copies that training does not need."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def group_of(event: Any, vocabulary: int, length: int) -> str:
    """What an operation of the profile belongs to: one with a size of the vocabulary is the head's or the loss's, one
    on length x length matrices the attention's."""
    name = event.key.removeprefix("aten::")
    sizes = [shape for shape in event.input_shapes if shape]
    if name.startswith(("embedding", "index_select")):
        return "rest"
    if any(vocabulary in shape for shape in sizes) or name.startswith(("nll_loss", "cross_entropy", "_log_softmax")):
        return "head"
    if "attention" in name or name in ("bmm", "baddbmm") or any(shape[-2:] == [length, length] for shape in sizes):
        return "attention"
    return "products" if name in ("mm", "addmm", "linear", "matmul") or "mkldnn" in name else "rest"


def profile(step: Any, vocabulary: int, length: int, details: int) -> dict[str, float]:
    """Seconds of one step by group; on request with the costliest operations on stderr."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as measured:
        step()
    seconds = dict.fromkeys(GROUPS, 0.0)
    events = sorted(measured.key_averages(group_by_input_shape=True), key=lambda event: -event.self_cpu_time_total)
    for event in events:
        seconds[group_of(event, vocabulary, length)] += event.self_cpu_time_total * 1e-6
    for event in events[:details]:
        print(f"{event.self_cpu_time_total * 1e-3:9.1f} ms {event.count:5}  {group_of(event, vocabulary, length):10}"
              f"{event.key} {[shape for shape in event.input_shapes if shape]}", file=sys.stderr)
    return seconds


def train_torch(options: argparse.Namespace) -> dict[str, Any]:
    """Trains for some steps: seconds of each, peaks of memory, on request a profile of one more step."""
    import peft
    import torch
    from llm_model import DTYPES, load_base

    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an attribute by its old name
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    before = high_water()
    base = load_base(options.model, DTYPES[options.base], options.attention)
    base.config.use_cache = False
    if options.recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    adapter = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, adapter)  # the factors are float, whatever the model is
    model.train()
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=RATE, weight_decay=0.0, fused=True)
    vocabulary = base.config.vocab_size
    rows = torch.randint(vocabulary, (options.sequences, options.length + 1))
    inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss  # a target for every token
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, CLIP)
        optimizer.step()
        return loss.item()

    loading = high_water()
    reset_high_water()
    seconds, losses = [], []
    for _ in range(WARM_UP + options.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    result = {"tokens_per_second": inputs.numel() / statistics.median(seconds[WARM_UP:]), "peak_bytes": high_water(),
              "before_bytes": before, "loading_peak_bytes": loading, "seconds": seconds, "losses": losses,
              "trainable": sum(factor.numel() for factor in factors),
              "versions": {"torch": torch.__version__, "peft": peft.__version__, "python": platform.python_version(),
                           "simd": torch.backends.cpu.get_cpu_capability()}}
    return result | ({"profile": profile(step, vocabulary, options.length, options.details)} if options.profile else {})


# ---- both sides -----------------------------------------------------------------------------------------------------


def environment(threads: int) -> dict[str, str]:
    """As in compare.py: two threads keep a core each, a single one may move away from other programs."""
    binding = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"} if threads > 1 else {"OMP_PROC_BIND": "false"}
    return binding | os.environ | {"OMP_NUM_THREADS": str(threads)}


def run(command: list[str], threads: int) -> dict[str, Any]:
    """The JSON in the last line of what a process prints."""
    done = subprocess.run(command, env=environment(threads), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: ended with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def common_arguments(options: argparse.Namespace, model: Path, base: str) -> list[str]:
    return ["--model", str(model), "--sequences", str(options.sequences), "--length", str(options.length),
            "--base", base, "--threads", str(options.threads), *(["--recompute"] if options.recompute else [])]


def torch_turn(options: argparse.Namespace, base: str, attention: str, steps: int,
               with_profile: bool = False) -> dict[str, Any]:
    own = ["--worker", "--attention", attention, "--steps", str(steps)]
    wanted = ["--profile", "--details", str(options.details)] if with_profile else []
    command = [sys.executable, __file__, *common_arguments(options, options.converted, base), *own, *wanted]
    return run(command, options.threads)


def our_turn(options: argparse.Namespace, base: str) -> dict[str, Any]:
    """Ours counts its warm-up among the steps as PyTorch's side does, so the same steps are left out."""
    steps = ["--steps", str(WARM_UP + options.steps)]
    result = run([str(options.ours), "bench", *common_arguments(options, options.model, base), *steps], options.threads)
    tokens = options.sequences * options.length
    return result | {"tokens_per_second": tokens / statistics.median(result["seconds"][WARM_UP:])}


@contextlib.contextmanager
def converted(model: Path) -> Iterator[Path]:
    """A Hugging Face folder with the model: transformers takes half a minute to open a GGUF file."""
    if model.is_dir():
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        check = Path(__file__).with_name("llm_check.py")
        subprocess.run([sys.executable, check, "--model", model, "--save-base", f"{folder}/base"], check=True)
        yield Path(folder) / "base"


def best_attention(options: argparse.Namespace, base: str) -> tuple[str, dict[str, Any]]:
    """The faster writing of the attention, and what its trial (with a profile) measured."""
    writings = ["eager", "sdpa"] if options.attention == "best" else [options.attention]
    trials = {writing: torch_turn(options, base, writing, min(3, options.steps), with_profile=True)
              for writing in writings}
    for writing, trial in trials.items():
        print(f"torch {base}, {writing}: {trial['tokens_per_second']:.0f} tokens/s, "
              f"{trial['peak_bytes'] / MIB:.0f} MiB", flush=True)
    return max(trials.items(), key=lambda trial: trial[1]["tokens_per_second"])


def measure(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, float]]]:
    """The results of every round by column, and a profile by column."""
    turns, profiles = {}, {}
    for base in options.bases:
        attention, trial = best_attention(options, base)
        name = f"torch {base}"
        profiles[name] = trial["profile"]
        turns[name] = lambda base=base, attention=attention: (
            torch_turn(options, base, attention, options.steps) | {"attention": attention})
        if options.ours:
            turns[f"ours {base}"] = lambda base=base: our_turn(options, base)
    rounds = {name: [] for name in turns}
    for current in range(options.rounds):
        order = list(turns) if current % 2 == 0 else list(reversed(turns))
        for name in order:
            rounds[name].append(turns[name]())
            print(f"round {current + 1}, {name}: {rounds[name][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    profiles |= {name: results[-1]["profile"] for name, results in rounds.items() if "profile" in results[-1]}
    return rounds, profiles


# ---- the report -----------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def middle(results: list[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def speed_table(rounds: dict[str, list[dict[str, Any]]]) -> str:
    """Speeds and peaks; of PyTorch's also what came on top of the process with its packages loaded."""
    theirs = [name for name in rounds if name.startswith("torch")]
    head = ["", "tokens/s", "peak MiB", "on top MiB", *(f"speed over {name}" for name in theirs),
            *(f"memory of {name}" for name in theirs)]
    rows = []
    for name, results in rounds.items():
        speed, peak = middle(results, "tokens_per_second"), middle(results, "peak_bytes")
        top = peak - middle(results, "before_bytes") if name in theirs else None
        row = [name, f"{speed:.0f}", f"{peak / MIB:.0f}", "" if top is None else f"{top / MIB:.0f}"]
        row += [f"{speed / middle(rounds[other], 'tokens_per_second'):.2f}" for other in theirs]
        for other in theirs:
            whole = middle(rounds[other], "peak_bytes")
            parts = (whole, whole - middle(rounds[other], "before_bytes"))
            row.append(" / ".join(f"{100 * (peak if name not in theirs or part == whole else top) / part:.0f} %"
                                  for part in parts))
        rows.append(row)
    return table(head, rows)


def profile_table(profiles: dict[str, dict[str, float]]) -> str:
    rows = []
    for name, seconds in profiles.items():
        total = sum(seconds.values())
        shares = [f"{100 * seconds[group] / total:.0f} % ({seconds[group]:.2f} s)" for group in GROUPS]
        rows.append([name, f"{total:.2f}", *shares])
    return table(["", "step s", *GROUPS], rows)


def about(options: argparse.Namespace) -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    settings = {"rank": RANK, "alpha": ALPHA, "targets": TARGETS, "sequences": options.sequences,
                "length": options.length, "threads": options.threads, "steps": options.steps,
                "warm_up": WARM_UP, "rounds": options.rounds, "recompute": options.recompute}
    return {"date": datetime.datetime.now().isoformat(timespec="seconds"), "processor": processor,
            "system": platform.platform(), "load_average": os.getloadavg(), "model": options.model.name,
            "settings": settings, "environment": {key: value for key, value in environment(options.threads).items()
                                                  if key.startswith(("OMP_", "MKL_", "DNNL_", "MALLOC_"))}}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--ours", type=Path, help="the program llm; without it PyTorch is measured alone")
    parser.add_argument("--bases", default="float,bf16", help="number types of the model (default: %(default)s)")
    parser.add_argument("--attention", choices=("best", "eager", "sdpa"), default="best",
                        help="PyTorch's writing of the attention (default: the faster one)")
    parser.add_argument("--sequences", type=int, default=4, help="sequences of a batch (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--steps", type=int, default=5, help=f"steps of a turn after {WARM_UP} others")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--recompute", action="store_true", help="keep each block's input only (checkpointing)")
    parser.add_argument("--details", type=int, default=0, help="list this many operations of PyTorch's profile")
    parser.add_argument("--json", type=Path, help="write all rounds, versions and settings to this file")
    for hidden in ("--worker", "--profile"):  # how the script calls itself
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model.exists():
        parser.error(f"no model at {options.model}")
    if options.ours and not options.ours.is_file():
        parser.error(f"no program at {options.ours}: build the target llm")
    options.bases = options.bases.split(",")
    if set(options.bases) - {"float", "bf16"}:
        parser.error("--bases must be some of float,bf16")
    if min(options.sequences, options.length, options.threads, options.steps, options.rounds) < 1:
        parser.error("--sequences, --length, --threads, --steps and --rounds must be at least 1")
    return options


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(train_torch(options)))
        return
    record = about(options)
    print(f"{record['processor']}; {record['settings']}")
    if record["load_average"][0] > 0.5:
        print(f"note: other programs are using this machine, load {record['load_average'][0]:.1f}")
    with converted(options.model) as options.converted:
        rounds, profiles = measure(options)
    print(f"\n{speed_table(rounds)}\n\n{profile_table(profiles)}")
    if options.json:
        record |= {"rounds": rounds, "profiles": profiles, "load_average_after": os.getloadavg()}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
