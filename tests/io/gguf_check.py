#!/usr/bin/env python3
"""Open GGUF files that our tests write with the Python package gguf: fields, tensors, shapes, values.

Runs the test program with LORA_GGUF_CHECK_DIR set to a fresh folder, then reads what it wrote there. The adapters
(llama_modules and gpt2_modules in gguf_adapter_test.cpp) are repeated below, with the names of tensors taken from the
package's own map and the permutation written as in the converter.

    python tests/io/gguf_check.py --tests build/tests/io_tests
"""

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

try:
    import gguf
    import numpy as np
except ImportError as reason:
    print(f"SKIPPED: the GGUF check needs the Python packages gguf and numpy: {reason}")
    sys.exit(0)

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent / "data" / "gguf"))
from make_gguf import ARRAYS, SCALARS, numbers  # noqa: E402

HEADS, KEY_HEADS = 2, 1
LAYERS = 13
# Module, seed, inputs, outputs, rank, scale.
LLAMA = (
    ("model.layers.0.self_attn.q_proj", 0, 12, 12, 4, 0.5),
    ("model.layers.0.self_attn.k_proj", 1, 12, 6, 4, 0.5),
    ("model.layers.0.self_attn.v_proj", 2, 12, 6, 2, 1.0),
    ("model.layers.0.self_attn.o_proj", 3, 12, 12, 4, 1.0),
    ("model.layers.12.mlp.gate_proj", 4, 12, 20, 1, 0.25),
    ("model.layers.12.mlp.up_proj", 5, 12, 20, 4, -0.75),
    ("model.layers.12.mlp.down_proj", 6, 20, 12, 4, 0.0),
)
GPT2 = (
    ("transformer.h.3.attn.c_attn", 0, 12, 36, 3, 2.0),
    ("transformer.h.3.attn.c_proj", 1, 12, 12, 3, 2.0),
    ("transformer.h.0.mlp.c_fc", 2, 12, 48, 3, 2.0),
    ("transformer.h.0.mlp.c_proj", 3, 48, 12, 3, 2.0),
    ("lm_head", 4, 12, 30, 3, 2.0),
)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def factors(seed: int, inputs: int, outputs: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """As PEFT has them: A rank x inputs, B outputs x rank."""
    return numbers(2 * seed, inputs, rank).T, numbers(2 * seed + 1, rank, outputs).T


def delta(name: str, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """What must be added to llama.cpp's weight."""
    full = scale * (b.astype(np.float64) @ a.astype(np.float64))
    if name.endswith("q_proj"):
        return permute(full, HEADS)
    return permute(full, KEY_HEADS) if name.endswith("k_proj") else full


class Adapter:
    """A file as llama.cpp sees it."""

    def __init__(self, path: Path, architecture: str) -> None:
        self.reader = gguf.GGUFReader(path)
        self.names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), LAYERS)
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        assert self.text("general.architecture") == architecture
        assert self.text("general.type") == gguf.GGUFType.ADAPTER
        assert self.text("adapter.type") == "lora"
        alpha = self.reader.get_field("adapter.lora.alpha")
        assert alpha.types == [gguf.GGUFValueType.FLOAT32]
        self.alpha = np.float32(alpha.contents())
        assert self.alpha != 0

    def text(self, key: str) -> str:
        field = self.reader.get_field(key)
        assert field.types == [gguf.GGUFValueType.STRING], key
        return field.contents()

    def delta(self, name: str, inputs: int, outputs: int, rank: int, kind: str) -> np.ndarray:
        weight = self.names.get_name(name, try_suffixes=(".weight",)) + ".weight"
        a, b = self.tensors.pop(weight + ".lora_a"), self.tensors.pop(weight + ".lora_b")
        assert a.tensor_type.name == kind and b.tensor_type.name == kind
        assert a.shape.tolist() == [inputs, rank] and b.shape.tolist() == [rank, outputs]
        scale = self.alpha / np.float32(b.shape[0])
        return float(scale) * (b.data.astype(np.float64) @ a.data.astype(np.float64))

    def finish(self) -> None:
        assert not self.tensors, f"tensors too many: {sorted(self.tensors)}"


def check_adapter(path: Path, architecture: str, modules, kind: str) -> float:
    """The numbers are exact in half precision and the scales simple; only folded ratios round."""
    file = Adapter(path, architecture)
    worst = 0.0
    for name, seed, inputs, outputs, rank, scale in modules:
        found = file.delta(name, inputs, outputs, rank, kind)
        a, b = factors(seed, inputs, outputs, rank)
        error = np.abs(found - delta(name, a, b, scale)).max()
        bound = abs(scale) * (np.abs(b) @ np.abs(a)).max() * (2.0**-22 if kind == "F32" else 2.0**-10)
        assert error <= bound, f"{path.name}: {name}: off by {error}, at most {bound}"
        worst = max(worst, error)
    file.finish()
    return worst


def check_offset(path: Path) -> None:
    file = Adapter(path, "llama")
    assert file.alpha == 12
    name = "model.layers.0.self_attn.q_proj"
    found = file.delta(name, 12, 12, 6, "F32")
    expected = delta(name, *factors(0, 12, 12, 3), 2.0) - delta(name, *factors(5, 12, 12, 3), 2.0)
    assert (found == expected).all()
    file.finish()


def check_fields(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    for name, kind, value in SCALARS:
        field = reader.get_field("test." + name)
        expected = float(np.float32(value)) if kind == gguf.GGUFValueType.FLOAT32 else value
        assert field.types == [kind] and field.contents() == expected, name
    for name, kind, values in ARRAYS:
        field = reader.get_field("test.array." + name)
        assert field.types == [gguf.GGUFValueType.ARRAY, kind] and field.contents() == values, name
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert (tensors["matrix.f32"].data == numbers(1, 5, 3)).all()
    assert (tensors["matrix.f16"].data == numbers(2, 3, 7)).all()
    assert (tensors["cube.i8"].data == np.arange(24).reshape(2, 3, 4)).all()
    assert reader.alignment == 64 and len(tensors) == 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, required=True, help="the test program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"LORA_GGUF_CHECK_DIR": name}
        subprocess.run([options.tests, "[gguf_check]"], env=environment, check=True)
        check_fields(folder / "fields.gguf")
        for file, architecture, modules in (
            ("llama_f32", "llama", LLAMA),
            ("llama_f16", "llama", LLAMA),
            ("gpt2_f32", "gpt2", GPT2),
        ):
            worst = check_adapter(folder / f"{file}.gguf", architecture, modules, file[-3:].upper())
            print(f"{file}: {len(modules)} modules, largest difference {worst:.3g}")
        assert gguf.GGUFReader(folder / "llama_f32.gguf").get_field("general.name").contents() == "checked"
        check_offset(folder / "offset_f32.gguf")
    print(f"gguf {version('gguf')} reads our files: fields, tensors, shapes and values")


if __name__ == "__main__":
    main()
