#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws the roofline of one run of lora_bench: roofline.py lora_bench.json PEAK roofline.svg

PEAK is the flag check's rate of multiply-adds in GFLOP/s, times the threads; the slope is the run's `memory_read`. Every
point is a product X W0: its flops over its bytes (W0, X and Y moved once) against its rate. Needs gnuplot.
"""
import json
import subprocess
import sys

KINDS = {"eigen": "plain Eigen", "packed": "packed float", "bf16_widened": "bf16, widened", "bf16": "bf16, fastest kernel"}


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, peak, target = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    with open(source, encoding="utf-8") as file:
        runs = [run for run in json.load(file)["benchmarks"] if run.get("aggregate_name") == "median"]
    if not any(run["run_name"].startswith("memory_read") for run in runs):
        sys.exit(f"{source}: needs the median of memory_read, got none (run without a filter)")
    memory = next(run["B/s"] for run in runs if run["run_name"].startswith("memory_read")) / 1e9
    points = {kind: [] for kind in KINDS}
    for run in runs:
        kind = run["run_name"].removeprefix("forward_product/").split("/")[0]
        if run["run_name"].startswith("forward_product/") and kind in KINDS:
            points[kind].append((run["flop/s"] / run["B/s"], run["flop/s"] / 1e9))
    blocks = "".join(
        f"${kind} << END\n" + "".join(f"{x} {y}\n" for x, y in sorted(rows)) + "END\n" for kind, rows in points.items())
    curves = ", ".join(f"${kind} with points pt {7 + i} ps 0.7 title '{KINDS[kind]}'"
                       for i, (kind, rows) in enumerate(points.items()) if rows)
    script = f"""set terminal svg size 800,500 background 'white'
set output '{target}'
set logscale xy
set xlabel 'flops for each byte that must move'
set ylabel 'GFLOP/s'
set key left top
set grid
{blocks}
plot [0.3:500] (x * {memory} < {peak} ? x * {memory} : {peak}) with lines lw 2 lc 'black' \\
  title 'min(peak {peak:.0f} GFLOP/s, {memory:.1f} GB/s)', {curves}
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


if __name__ == "__main__":
    main()
