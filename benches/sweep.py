"""A sweep beside the runs that it replaces, one after the other, in turns within one run.

usage: sweep.py --sae target/release/sae [--rows 100000] [--turns 3] [--out FILE.md]

Eight small models of one seed on gzipped rows: once in memory, once with `--memory` an eighth of the rows. The runs one
after the other are whole commands; their models must be those of the sweep, byte for byte.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--sae", required=True)
parser.add_argument("--rows", type=int, default=100_000)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--turns", type=int, default=3)
parser.add_argument("--out")
args = parser.parse_args()
D, KS = 512, [2, 3, 4, 6, 8, 12, 16, 24]


def seconds(command):
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


lines = []
with tempfile.TemporaryDirectory(dir=".") as folder:
    data = Path(folder) / "rows.h5"
    rng = np.random.default_rng(0)
    with h5py.File(data, "w") as file:
        rows = rng.standard_normal((args.rows, D)).astype(np.float32).round(2)
        file.create_dataset("rows", data=rows, chunks=(256, D), compression="gzip", shuffle=True)
    size = args.rows * D * 4
    common = ["--latents", "256", "--batch-size", "2048", "--steps", str(args.steps), "--early-stop", "0", "--quiet"]
    common += ["--eval-rows", "200", "--final-rows", "1000"]
    for name, memory in (("in memory", "all"), ("in their file", str(size // 8))):
        turns = []
        for _ in range(args.turns):
            sweep, single = Path(folder) / "sweep", Path(folder) / "single"
            options = [*common, "--memory", memory]
            together = seconds(
                [args.sae, "--device=cpu", "sweep", data, "--out", sweep, "--k", ",".join(map(str, KS)), *options]
            )
            alone = 0
            for k in KS:
                out = single / f"k={k}"
                # What one run found on its first pass the next ones take from it.
                alone += seconds([args.sae, "--device=cpu", "train", data, "--out", out, "--k", str(k), *options])
                models = [path / "model.safetensors" for path in (out, sweep / f"k={k}")]
                assert models[0].read_bytes() == models[1].read_bytes(), k
            turns.append((together, alone))
            shutil.rmtree(sweep), shutil.rmtree(single)
        together, alone = (median(column) for column in zip(*turns))
        ratio = median(sweep / runs for sweep, runs in turns)
        lines.append(f"| {name} | {together:.1f} | {alone:.1f} | {ratio:.2f} |")
head = [
    f"{len(KS)} models (M 256, k {', '.join(map(str, KS))}, {args.steps} steps of 2048 rows) on {args.rows} gzipped rows of {D} "
    f"float32; {os.cpu_count()} cores; median of {args.turns} turns",
    "",
    "| rows | sweep, s | eight runs, s | sweep / runs |",
    "| --- | --- | --- | --- |",
]
print("\n".join(head + lines))
if args.out:
    Path(args.out).write_text("\n".join(head + lines) + "\n")
sys.exit(0)
