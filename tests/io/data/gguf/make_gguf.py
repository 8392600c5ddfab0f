#!/usr/bin/env python3
"""Make the GGUF files that the tests read, with the Python package gguf.

fields.gguf    a key of every type, arrays of every element type, tensors of the plain types; alignment 64
blocks.gguf    for each type that we dequantise the tensor `<type>` of random blocks and `<type>.expected`, F32, as
               gguf.dequantize gives it
adapter.gguf   a LoRA adapter as llama.cpp's converter lays it out: llama, 2 heads and 1 key head of 6 outputs

Seed and versions stand in the key `made.by` of each file. To remake them:

    pip install gguf numpy
    python tests/io/data/gguf/make_gguf.py --seed 5
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

SCALARS = (
    ("u8", Value.UINT8, 200),
    ("i8", Value.INT8, -100),
    ("u16", Value.UINT16, 60000),
    ("i16", Value.INT16, -30000),
    ("u32", Value.UINT32, 4000000000),
    ("i32", Value.INT32, -2000000000),
    ("f32", Value.FLOAT32, 0.1),
    ("bool", Value.BOOL, True),
    ("string", Value.STRING, "Grüße, 世界"),
    ("u64", Value.UINT64, 2**63 + 5),
    ("i64", Value.INT64, -(2**62) - 1),
    ("f64", Value.FLOAT64, 0.1),
)
ARRAYS = (
    ("u8", Value.UINT8, [0, 1, 255]),
    ("i8", Value.INT8, [-128, 127]),
    ("u16", Value.UINT16, [65535]),
    ("i16", Value.INT16, [-32768, 0, 32767]),
    ("u32", Value.UINT32, [1, 4294967295]),
    ("i32", Value.INT32, [-2147483648, 7]),
    ("f32", Value.FLOAT32, [0.5, -1.5]),
    ("bool", Value.BOOL, [True, False, True]),
    ("string", Value.STRING, ["<s>", "Ġthe", "x" * 40]),
    ("u64", Value.UINT64, [18446744073709551615]),
    ("i64", Value.INT64, [-9223372036854775808, 1]),
    ("f64", Value.FLOAT64, [1e300, -0.0]),
)
# Where the half-precision numbers of a block stand.
HALVES = {
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q8_0: (0,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
}
# One for each block: usual, negative, subnormal, zero, the largest, infinite.
SCALES = (0.0123, -1.75, 3e-6, 0.0, 65504.0, np.inf)
ADAPTER = (("attn_q", 12, 12), ("attn_k", 12, 6), ("ffn_down", 20, 12))
HEADS = {"attn_q": 2, "attn_k": 1}
RANK = 3


def writer(path: Path, made_by: str) -> gguf.GGUFWriter:
    result = gguf.GGUFWriter(path, "llama")
    result.add_string("made.by", made_by)
    return result


def close(result: gguf.GGUFWriter) -> None:
    result.write_header_to_file()
    result.write_kv_data_to_file()
    result.write_tensors_to_file()
    result.close()


def numbers(seed: int, rows: int, cols: int) -> np.ndarray:
    """What the tests compute as well: eighths between -1 and 1."""
    i, j = np.arange(rows)[:, None], np.arange(cols)[None, :]
    return (((7 * i + 3 * j + 11 * seed) % 17 - 8) / 8).astype(np.float32)


def make_fields(path: Path, made_by: str) -> None:
    file = writer(path, made_by)
    file.add_custom_alignment(64)
    for name, kind, value in SCALARS:
        file.add_key_value("test." + name, value, kind)
    for name, kind, values in ARRAYS:
        file.add_key_value("test.array." + name, values, Value.ARRAY, kind)
    file.add_tensor("matrix.f32", numbers(1, 5, 3))
    file.add_tensor("matrix.f16", numbers(2, 3, 7).astype(np.float16))
    file.add_tensor("vector.f64", numbers(3, 1, 9)[0].astype(np.float64))
    file.add_tensor("cube.i8", np.arange(24, dtype=np.int8).reshape(2, 3, 4))
    file.add_tensor("four.i16", np.arange(16, dtype=np.int16).reshape(2, 2, 2, 2))
    file.add_tensor("vector.i32", np.arange(3, dtype=np.int32))
    file.add_tensor("vector.i64", np.arange(1, dtype=np.int64))
    close(file)


def make_blocks(path: Path, made_by: str, random: np.random.Generator) -> None:
    file = writer(path, made_by)
    for kind, places in HALVES.items():
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (len(SCALES), size), dtype=np.uint8)
        for place in places:
            order = np.array(SCALES) if place == places[0] else random.permutation(SCALES)
            blocks[:, place : place + 2] = order.astype("<f2").reshape(-1, 1).view(np.uint8)
        rows = blocks.reshape(3, 2 * size)  # rows of two blocks
        with np.errstate(invalid="ignore"):
            expected = gguf.dequantize(rows, kind)
        file.add_tensor(kind.name, rows, raw_dtype=kind)
        file.add_tensor(kind.name + ".expected", expected)
    bits = random.integers(0, 2**16, (8, 32), dtype=np.uint16)
    bits[0, :12] = [0, 0x8000, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x3C00, 0x7F80, 0xFF80]
    file.add_tensor("F16", bits.view(np.float16))
    file.add_tensor("F16.expected", gguf.dequantize(bits.view(np.float16), Type.F16))
    file.add_tensor("BF16", bits.view(np.uint8), raw_dtype=Type.BF16)
    file.add_tensor("BF16.expected", gguf.dequantize(bits.view(np.uint8), Type.BF16))
    close(file)


def make_adapter(path: Path, made_by: str) -> None:
    file = writer(path, made_by)
    file.add_string("general.type", "adapter")
    file.add_string("adapter.type", "lora")
    file.add_float32("adapter.lora.alpha", 6.0)
    for seed, (name, inputs, outputs) in enumerate(ADAPTER):
        a, b = numbers(2 * seed, inputs, RANK).T.copy(), numbers(2 * seed + 1, RANK, outputs).T.copy()
        if name in HEADS:  # the converter's permutation of rows
            heads = HEADS[name]
            b = b.reshape(heads, 2, outputs // heads // 2, RANK).swapaxes(1, 2).reshape(b.shape).copy()
        file.add_tensor(f"blk.1.{name}.weight.lora_a", a)
        file.add_tensor(f"blk.1.{name}.weight.lora_b", b.astype(np.float16) if name == "ffn_down" else b)
    close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    made_by = f"make_gguf.py --seed {options.seed}, gguf {version('gguf')}, numpy {np.__version__}"
    options.out.mkdir(parents=True, exist_ok=True)
    make_fields(options.out / "fields.gguf", made_by)
    make_blocks(options.out / "blocks.gguf", made_by, np.random.default_rng(options.seed))
    make_adapter(options.out / "adapter.gguf", made_by)


if __name__ == "__main__":
    main()
