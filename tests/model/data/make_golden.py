#!/usr/bin/env python3
"""Make the golden data of tests/model with the real PyTorch and PEFT.

combine.txt: what PEFT's add_weighted_adapter makes of three adapters of one nn.Linear (9 -> 7), in double. The file is
in the notation of the library, W0 n x m, A n x r, B r x m, the transposes of PyTorch's. PEFT draws DARE's masks with
torch.bernoulli; here it gets them from the library's own generator (Random below), in the library's order: each A
component by component, then each B likewise.

targets.txt: which module names PEFT's rules match. One question a line, fields separated by tabs:
  list    entries joined by |   name  0 or 1
  pattern regular expression    name  0 or 1
  layers  entries joined by | ; numbers joined by | ; layers_pattern joined by |    name  0 or 1
  save    one of modules_to_save    name  1 where the name is kept from the adapters
  first   patterns of rank_pattern joined by " ;; "    name  index of the one that counts, or -1
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import peft
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

N, M, RANK, DENSITY, DRAWS_SEED = 9, 7, 3, 0.6, 20
SCALES, WEIGHTS = (2.0, 1.0, 4.0 / 3.0), (0.7, -0.4, 1.1)
MASK = (1 << 64) - 1


class Random:
    """The generator of the library: xoshiro256++ seeded by SplitMix64."""

    def __init__(self, seed):
        self.state = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & MASK
            mixed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
            self.state.append(mixed ^ (mixed >> 31))

    def uniform(self):
        def rotl(x, k):
            return ((x << k) | (x >> (64 - k))) & MASK

        s = self.state
        result = (rotl((s[0] + s[3]) & MASK, 23) + s[0]) & MASK
        shifted = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= shifted
        s[3] = rotl(s[3], 45)
        return (result >> 11) * 2.0**-53


def bernoulli_from(random):
    """Masks for PEFT's lora_A [r, n], drawn row by row, and lora_B [m, r], drawn column by column."""

    def bernoulli(probabilities):
        by_components = probabilities if probabilities.shape[0] == RANK else probabilities.T
        kept = [1.0 if random.uniform() < p else 0.0 for p in by_components.flatten().tolist()]
        mask = torch.tensor(kept).reshape(by_components.shape)
        return mask if probabilities.shape[0] == RANK else mask.T

    return mock.patch("torch.bernoulli", bernoulli)


def write_item(out, name, tensor):
    rows = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor
    out.append(f"{name} {rows.shape[0]} {rows.shape[1]}")
    out.extend(" ".join(repr(float(x)) for x in row) for row in rows)


def combine(seed):
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(N, M, bias=False)

    names = ["first", "second", "third"]
    config = [peft.LoraConfig(r=RANK, lora_alpha=RANK * s, target_modules=["layer"]) for s in SCALES]
    model = peft.get_peft_model(Model(), config[0], adapter_name=names[0])
    for name, c in zip(names[1:], config[1:]):
        model.add_adapter(name, c)
    layer = model.base_model.model.layer
    out = [
        "# three adapters of one layer, and what PEFT's add_weighted_adapter makes of them",
        f"# torch {torch.__version__}, peft {peft.__version__}; seed {seed}",
        f"# python tests/model/data/make_golden.py --seed {seed}",
    ]
    write_item(out, "scales", torch.tensor(SCALES))
    write_item(out, "weights", torch.tensor(WEIGHTS))
    write_item(out, "density", torch.tensor([DENSITY]))
    write_item(out, "draws_seed", torch.tensor([float(DRAWS_SEED)]))
    with torch.no_grad():
        for name in names:
            layer.lora_A[name].weight.copy_(torch.randn(RANK, N))
            layer.lora_B[name].weight.copy_(torch.randn(M, RANK))
            assert layer.lora_A[name].weight.dtype == torch.float64
            write_item(out, f"{name}.A", layer.lora_A[name].weight.T)
            write_item(out, f"{name}.B", layer.lora_B[name].weight.T)

    cases = {
        "cat": dict(combination_type="cat"),
        "svd": dict(combination_type="svd", svd_rank=4),
        "svd_default": dict(combination_type="svd"),
        "linear": dict(combination_type="linear"),
        "magnitude_prune": dict(combination_type="magnitude_prune", density=DENSITY),
        "ties": dict(combination_type="ties", density=DENSITY),
        "ties_frequency": dict(combination_type="ties", density=DENSITY, majority_sign_method="frequency"),
        "dare_linear": dict(combination_type="dare_linear", density=DENSITY),
        "dare_ties": dict(combination_type="dare_ties", density=DENSITY),
        "dare_ties_frequency": dict(combination_type="dare_ties", density=DENSITY, majority_sign_method="frequency"),
    }
    for case, arguments in cases.items():
        with bernoulli_from(Random(DRAWS_SEED)):
            model.add_weighted_adapter(names, list(WEIGHTS), case, **arguments)
        assert layer.scaling[case] == 1
        A, B = layer.lora_A[case].weight.detach().T, layer.lora_B[case].weight.detach().T
        write_item(out, f"{case}.A", A)
        write_item(out, f"{case}.B", B)
    return "\n".join(out) + "\n"


def targets():
    modules = [
        "lm_head",
        "layers.0.q_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.my_q_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.10.mlp.gate_proj",
        "model.layers.1.experts.0.gate_proj",
        "transformer.h.0.attn.c_attn",
        "transformer.h.11.mlp.c_proj",
        "vision.blocks.3.layers.7.attn.qkv",
        "score.dense.q_proj",
        "q_proj",
        "model.layers.01.q_proj",
        "a.b.3",
        "a.4.c",
        ".b.5.c",
        "a..6.c",
        "model.layers.99999999999999999999.q_proj",
    ]
    rows = []

    def ask(**config):
        return SimpleNamespace(
            **{"exclude_modules": None, "target_parameters": None, "target_modules": ["none"], **config}
        )

    lists = [["q_proj"], ["q_proj", "v_proj"], ["self_attn.q_proj"], ["proj"], ["model.layers.0.self_attn.q_proj"],
             ["0.self_attn.q_proj"], ["c_proj", "score"], ["c"]]
    for entries in lists:
        for name in modules:
            met = check_target_module_exists(ask(target_modules=set(entries)), name)
            rows.append(("list", "|".join(entries), name, int(bool(met))))
    patterns = [".*q_proj", "q_proj", r".*\.(q|v)_proj", r"model\.layers\.[0-9]+\..*", r".*layers\.(0|1)\..*proj",
                r".*\.\d+\..*", "(?!lm_head).*", r"^model.*$", r".*\b(gate|c)_proj\b", r"[^.]+", r".*[.][a-z]{1,4}",
                r"(?:model|transformer)\.\w+\.\d{1,2}\..+?", ".*(?=q)q_proj", r"(.*\.)?(?:my_)?q_proj", "lm_head|score.*"]
    for pattern in patterns:
        for name in modules:
            met = check_target_module_exists(ask(target_modules=pattern), name)
            rows.append(("pattern", pattern, name, int(bool(met))))
    everything = ["q_proj", "v_proj", "gate_proj", "c_attn", "c_proj", "qkv", "c", "3"]
    for numbers, where in [([0], []), ([0, 1], []), ([7], []), ([7], ["layers"]), ([3], ["blocks", "layers"]),
                           ([0, 11], ["h"]), ([1], ["layers"]), ([0], ["experts"]), ([0], [r"lay.*"]), ([10], None),
                           ([4, 5, 6], []), ([1], ["self"]), ([0], ["model.layers"])]:
        for name in modules:
            config = ask(target_modules=set(everything), layers_to_transform=numbers, layers_pattern=where)
            met = check_target_module_exists(config, name)
            fields = ";".join("|".join(map(str, part or [])) for part in (everything, numbers, where))
            rows.append(("layers", fields, name, int(bool(met))))
    for saved in ["lm_head", "score", "self_attn", "layers.0", "mlp.gate_proj", "dense"]:
        for name in modules:
            met = check_target_module_exists(ask(target_modules=".*", modules_to_save=[saved]), name)
            rows.append(("save", saved, name, int(not met)))
    firsts = [["q_proj", ".*proj"], [".*proj", "q_proj"], ["self_attn.q_proj", "q_proj"], ["layers.0.*", "c_attn"],
              ["^model.layers.1.*"], ["^layers.*", "(h|layers).1.*"], [r"layers\.[0-9]\..*", "layers.10.*"],
              ["proj", "c"], ["q_proj$"], [r"experts\.\d+\.gate_proj", "gate_proj"]]
    for keys in firsts:
        for name in modules:
            key = get_pattern_key(keys, name)
            rows.append(("first", " ;; ".join(keys), name, keys.index(key) if key in keys else -1))
    head = [f"# made by tests/model/data/make_golden.py with peft {peft.__version__}"]
    return "\n".join(head + ["\t".join(map(str, row)) for row in rows]) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    (arguments.out / "combine.txt").write_text(combine(arguments.seed))
    (arguments.out / "targets.txt").write_text(targets())


if __name__ == "__main__":
    main()
