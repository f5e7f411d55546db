"""Training on rows that stay in their file beside training on the same rows in memory, in turns within one run.

usage: stream.py --sae target/release/sae [--rows 400000] [--share 8] [--steps 60] [--out FILE.md]

The file is SHARE times as large as `--memory`. Peaks are those of the system's own accounting (ru_maxrss), speeds those of
the steps alone (`rows_per_second` in summary.json), the whole command's time beside them. The rows are sorted by family:
each of 200 families has its own mean row.
"""
import argparse
import json
import os
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
parser.add_argument("--rows", type=int, default=400_000)
parser.add_argument("--share", type=int, default=8)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--turns", type=int, default=3)
parser.add_argument("--out")
args = parser.parse_args()
D, FAMILIES = 1024, 200


def run(command):
    """Seconds and peak bytes of a command."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, told.decode()
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def resident_over_time(command):
    """Resident bytes of a command at each tenth of its time."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = []
    while child.poll() is None:
        pages = Path(f"/proc/{child.pid}/statm").read_text().split()
        samples += [int(pages[1]) * os.sysconf("SC_PAGE_SIZE")] if pages else []
        time.sleep(0.05)
    assert child.returncode == 0
    return [samples[min(len(samples) - 1, len(samples) * tenth // 10)] for tenth in range(11)]


with tempfile.TemporaryDirectory(dir=".") as folder:
    data = Path(folder) / "rows.h5"
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((256, D), np.float32)
    with h5py.File(data, "w") as file:
        rows = file.create_dataset("rows", (args.rows, D), np.float16)
        for family in range(FAMILIES):
            part = slice(args.rows * family // FAMILIES, args.rows * (family + 1) // FAMILIES)
            n = part.stop - part.start
            codes = (rng.random((n, 256)) < 0.05) * rng.random((n, 256), np.float32)
            codes[:, family] += 2
            rows[part] = (codes.astype(np.float32) @ basis + 0.3 * rng.standard_normal((n, D), np.float32)).astype(np.float16)
    size = data.stat().st_size
    memory = size // args.share
    options = ["--latents", "8192", "--batch-size", "2048", "--steps", str(args.steps), "--quiet", "--overwrite"]
    options += ["--early-stop", "0", "--keep-checkpoints", "1"]
    figures = {"resident": [], "streamed": []}
    for _ in range(args.turns):
        for name, limit in (("resident", "all"), ("streamed", str(memory))):
            out = Path(folder) / name
            seconds, peak = run([args.sae, "--device=cpu", "train", data, "--out", out, "--memory", limit, *options])
            summary = json.loads((out / "summary.json").read_text())
            figures[name].append((summary["rows_per_second"], seconds, peak, summary["val"]["fvu"]))
    over_time = resident_over_time(
        [args.sae, "--device=cpu", "train", data, "--out", Path(folder) / "streamed", "--memory", str(memory), *options]
    )
    began = time.perf_counter()
    subprocess.run(["cat", data], stdout=subprocess.DEVNULL, check=True)
    plain = time.perf_counter() - began

lines = [
    f"{args.rows} rows of {D} float16 ({size / 1e6:.0f} MB), sorted by family; --memory {memory / 1e6:.0f} MB; "
    f"M 8192, {args.steps} steps of 2048 rows; {os.cpu_count()} cores",
    "",
    "| | rows/s in steps | whole command, s | peak memory, MB | validation FVU |",
    "| --- | --- | --- | --- | --- |",
]
middle = {name: [median(column) for column in zip(*turns)] for name, turns in figures.items()}
for name, (speed, seconds, peak, fvu) in middle.items():
    lines.append(f"| {name} | {speed:.0f} | {seconds:.1f} | {peak / 1e6:.0f} | {fvu:.4f} |")
ratio = median(s[0] / r[0] for s, r in zip(figures["streamed"], figures["resident"]))
in_steps = args.steps * 2048 / middle["streamed"][0] / middle["streamed"][1]
lines += [
    "",
    f"streamed / resident, rows/s: {ratio:.3f} (median of {args.turns} turns); share of the streamed command's time in steps: "
    f"{in_steps:.2f}; the file read once by `cat` (cached): {plain:.1f} s",
    "",
    "Resident memory of a streamed run, MB, at each tenth of its time: "
    + ", ".join(f"{bytes / 1e6:.0f}" for bytes in over_time),
]
print("\n".join(lines))
if args.out:
    Path(args.out).write_text("\n".join(lines) + "\n")
sys.exit(0)
