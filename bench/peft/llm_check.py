#!/usr/bin/env python3
"""Checks the program llm against transformers and PEFT: greedy continuations, perplexity, an adapter that it wrote.

transformers computes in float32 on the dequantised weights. A text is cut into rows of `length` tokens, each followed
by the same tokens one place on, so that rows overlap by one token and every token but the text's first is predicted
once; the last row is as short as it happens to be.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.dont_write_bytecode = True
import torch  # noqa: E402
import transformers  # noqa: E402
from llm_model import load_base, load_tokenizer, save_base  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

PROMPTS = (  # after none of them SmolLM2-135M-Instruct ends its text within 64 tokens
    "My favourite season is autumn, because",
    "She opened the old door and saw",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "The 12 months of 2024  and 3 of 2025:\n1. January 2024\n2.",
    "L'\u00e9t\u00e9 \u00e0 Z\u00fcrich \u2014 na\u00efve \u2603 \u65e5\u672c\u8a9e:\n",
)
END = "<|im_end|>"  # what the program puts behind a text: the model's eos
RELATIVE_PERPLEXITY, ADAPTER_LOSS = 1e-3, 1e-3


class Evaluation(NamedTuple):
    """Sums over all targets of a text."""

    rows: list[float]  # sum of -log p in each row
    targets: int
    last: int  # targets of the last row

    def loss(self) -> float:
        return math.fsum(self.rows) / self.targets


# ---- the reference --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The likeliest tokens after the prompt, and the smallest lead in logits that one had over the second."""
    cache, pending, new, lead = transformers.DynamicCache(config=model.config), prompt, [], math.inf
    for _ in range(count):
        logits = model(input_ids=torch.tensor([pending]), past_key_values=cache, use_cache=True).logits[0, -1]
        best = logits.topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        pending = [best.indices[0].item()]
        new += pending
    return new, lead


@torch.inference_mode()
def evaluate(model: Any, tokens: list[int], length: int) -> Evaluation:
    """-log p of every token but the first, by rows."""
    rows, last = [], 0
    for start in range(0, len(tokens) - 1, length):
        row = torch.tensor(tokens[start : start + length + 1])
        logits = model(input_ids=row[None, :-1], use_cache=False).logits[0]
        last = len(row) - 1
        rows.append(torch.nn.functional.cross_entropy(logits.double(), row[1:], reduction="sum").item())
    return Evaluation(rows, len(tokens) - 1, last)


def reference(model: Any, tokenizer: Tokenizer, options: argparse.Namespace) -> dict[str, Any]:
    record: dict[str, Any] = {"model": options.model.name, "transformers": transformers.__version__,
                              "torch": torch.__version__, "length": options.length, "continuations": []}
    for prompt in options.prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        new, lead = greedy(model, ids, options.tokens)
        record["continuations"].append({"prompt": prompt, "prompt_ids": ids, "new_ids": new, "smallest_lead": lead,
                                        "text": tokenizer.decode(new, skip_special_tokens=False)})
    if options.text:
        record["text"] = options.text.name
        record |= figures(evaluate(model, options.text_ids, options.length), options.length)
    return record


def figures(result: Evaluation, length: int) -> dict[str, Any]:
    """Mean loss and perplexity, also without the last row where that is short."""
    short = result.last < length and len(result.rows) > 1
    whole = Evaluation(result.rows[:-1], result.targets - result.last, length) if short else result
    return {"targets": result.targets, "loss": result.loss(), "perplexity": math.exp(result.loss()),
            "whole_rows": {"targets": whole.targets, "loss": whole.loss(), "perplexity": math.exp(whole.loss())},
            "row_losses": result.rows}


def with_adapter(model: Any, folder: Path) -> Any:
    """The base with an adapter opened by PEFT; ends where a factor is missing or too much."""
    import peft
    from safetensors import safe_open

    adapted = peft.PeftModel.from_pretrained(model, folder, torch_device="cpu").eval()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    wanted = {key: tuple(value.shape) for key, value in peft.get_peft_model_state_dict(adapted).items()}
    if shapes != wanted:
        sys.exit(f"{folder}: missing {sorted(wanted.keys() - shapes.keys())}, "
                 f"unexpected {sorted(shapes.keys() - wanted.keys())}, other shapes "
                 f"{sorted(key for key in wanted.keys() & shapes.keys() if wanted[key] != shapes[key])}")
    print(f"{folder}: {len(shapes)} factors, none missing or unexpected", flush=True)
    return adapted


# ---- ours beside it -------------------------------------------------------------------------------------------------


def ours(options: argparse.Namespace, command: str, *arguments: str) -> str:
    line = [str(options.ours), command, "--model", str(options.model), *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}: ended with {done.returncode}")
    return done.stdout


def our_loss(options: argparse.Namespace, *arguments: str) -> tuple[float, float]:
    """Loss and perplexity as `llm evaluate` prints them."""
    printed = ours(options, "evaluate", "--text", str(options.text), "--length", str(options.length), *arguments)
    values = dict(line.split()[:2] for line in printed.splitlines() if line.startswith(("loss ", "perplexity ")))
    return float(values["loss"]), float(values["perplexity"])


def verdict(good: bool, text: str) -> bool:
    print(f"{'same' if good else 'DIFFERENT'}: {text}", flush=True)
    return good


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Up to a token that ends the text, where a program may stop."""
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def compare_continuations(record: dict[str, Any], options: argparse.Namespace, ends: set[int]) -> bool:
    good = True
    for item in record["continuations"]:
        printed = ours(options, "generate", "--prompt", item["prompt"], "--tokens", str(options.tokens), "--ids")
        got, wanted = [int(word) for word in printed.split()], item["new_ids"]
        if len(got) < len(wanted):
            got, wanted = until_end(got, ends), until_end(wanted, ends)
        equal = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b),
                     min(len(got), len(wanted)))
        good &= verdict(got == wanted, f"{equal} of {len(wanted)} tokens after {item['prompt']!r}, "
                                       f"smallest lead {item['smallest_lead']:.4f}")
    return good


def compare_text(record: dict[str, Any], options: argparse.Namespace) -> bool:
    wanted = record["whole_rows"] if options.whole_rows else record
    loss, perplexity = our_loss(options)
    off = perplexity / wanted["perplexity"] - 1
    return verdict(abs(off) <= RELATIVE_PERPLEXITY and abs(math.log(perplexity) - loss) < 1e-3,
                   f"perplexity {perplexity:.6f}, transformers' {wanted['perplexity']:.6f}, off by {100 * off:.5f} %")


def check_adapter(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    adapted = with_adapter(load_base(options.model), folder)  # a fresh base: PEFT may change it, as for PiSSA
    record = figures(evaluate(adapted, options.text_ids, options.length), options.length)
    wanted = (record["whole_rows"] if options.whole_rows else record)["loss"]
    if not options.ours:
        print(f"{folder}: loss {wanted:.6f}")
        return record, True
    loss, _ = our_loss(options, "--adapter", str(folder))
    return record, verdict(abs(loss - wanted) <= ADAPTER_LOSS,
                           f"with {folder}, loss {loss:.6f}, PEFT's {wanted:.6f}, off by {loss - wanted:.2e}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a Hugging Face folder")
    parser.add_argument("--text", type=Path, help="the text whose perplexity is taken")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--whole-rows", action="store_true", help="compare without the last row where it is short")
    parser.add_argument("--prompts", type=Path, help="a JSON list of prompts instead of the script's five")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a prompt, 0 for none (default: %(default)s)")
    parser.add_argument("--ours", type=Path, help="the program llm, to be compared")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="a PEFT folder; may be repeated")
    parser.add_argument("--reference", type=Path, help="compare with this file (of --json) and compute no base again")
    parser.add_argument("--save-base", type=Path, help="write the model as a Hugging Face folder here, and end")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the reference to this file")
    options = parser.parse_args()
    if not options.model.exists():
        parser.error(f"no model at {options.model}")
    if options.adapter and not options.text:
        parser.error("--adapter needs --text")
    options.prompts = json.loads(options.prompts.read_text(encoding="utf-8")) if options.prompts else list(PROMPTS)
    if options.tokens == 0:
        options.prompts = []
    return options


def main() -> None:
    options = parse()
    if options.save_base:
        save_base(options.model, options.save_base)
        return
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    if options.text:
        text = options.text.read_bytes().decode("utf-8")
        options.text_ids = tokenizer.encode(text, add_special_tokens=False).ids + [tokenizer.token_to_id(END)]
    if options.reference:
        record = json.loads(options.reference.read_text(encoding="utf-8"))
    else:
        record = reference(load_base(options.model).eval(), tokenizer, options)
    ends = {number for token in ("<|endoftext|>", "<|im_end|>") if (number := tokenizer.token_to_id(token)) is not None}
    good = True
    if options.ours:
        good &= compare_continuations(record, options, ends)
        good &= compare_text(record, options) if options.text else True
    for folder in options.adapter:
        values, same = check_adapter(folder, options)
        record.setdefault("adapters", {})[str(folder)] = values
        good &= same
    if not options.ours:
        print(json.dumps({key: value for key, value in record.items() if key != "row_losses"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(not good)


if __name__ == "__main__":
    main()
