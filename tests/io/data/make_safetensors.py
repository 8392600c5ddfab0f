#!/usr/bin/env python3
"""Make the golden safetensors files with the real `safetensors` package (metadata: its version).

- types.safetensors: every element type, [2, 4], the bytes 11 + 37 i mod 256; named by the type.
- names.safetensors: names and metadata that need escapes, shapes of all ranks, empty tensors.
- values.safetensors: the numbers (i - 5) * 0.75, i = 0 .. 11, as [3, 4], in every type that holds them
  (whole numbers i for integers, i odd for booleans).
"""

import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save

TYPES = {
    "BOOL": ("bool", 8), "F4": ("float4_e2m1fn_x2", 4), "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6), "U8": ("uint8", 8), "I8": ("int8", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E8M0": ("float8_e8m0fnu", 8), "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "I16": ("int16", 16), "U16": ("uint16", 16), "F16": ("float16", 16),
    "BF16": ("bfloat16", 16), "I32": ("int32", 32), "U32": ("uint32", 32), "F32": ("float32", 32),
    "C64": ("complex64", 64), "F64": ("float64", 64), "I64": ("int64", 64), "U64": ("uint64", 64),
}  # fmt: skip


def types() -> bytes:
    specs, keep = {}, []
    for code, (name, bits) in TYPES.items():
        data = torch.tensor([(11 + 37 * i) % 256 for i in range(bits)], dtype=torch.uint8)  # 8 elements: `bits` bytes
        keep.append(data)
        shape = [2, 2] if code == "F4" else [2, 4]  # the package doubles the last size of its packed type
        try:
            spec = safetensors.TensorSpec(dtype=name, shape=shape, data_ptr=data.data_ptr(), data_len=bits)
        except safetensors.SafetensorError as error:
            print(f"{code} left out: {error}", file=sys.stderr)
            continue
        specs[code] = spec
    return safetensors.serialize(specs, {"made with safetensors": safetensors.__version__})


def names() -> bytes:
    number = iter(range(1, 100))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.full(shape, next(number), dtype=torch.float32)

    return save(
        {
            "": tensor(1),
            "b": tensor(2),
            "B": tensor(3),
            "number": tensor(),
            "empty": tensor(0),
            "empty.rows": tensor(3, 0),
            "five": tensor(1, 2, 1, 2, 1),
            'quote " backslash \\ slash /': tensor(1),
            "tab \t line \n bell \a delete \x7f null \0": tensor(1),
            "é 字 😀 \u2028": tensor(1),
            "half": tensor(2, 2).half(),
            "bytes": tensor(3).to(torch.uint8),
        },
        {'key " \\ / \b \f \n \r \t \x1f é': 'value " \\ / \b \f \n \r \t \x1f é'},
    )


def values() -> bytes:
    whole = torch.arange(12).reshape(3, 4)
    tensors = {"BOOL": whole % 2 == 1}
    for name in ("float64", "float32", "float16", "bfloat16"):
        tensors[name] = ((whole - 5) * 0.75).to(getattr(torch, name))
    for name in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"):
        tensors[name] = whole.to(getattr(torch, name))
    return save(tensors, {"made with safetensors": safetensors.__version__})


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for make in (types, names, values):
        (folder / f"{make.__name__}.safetensors").write_bytes(make())
