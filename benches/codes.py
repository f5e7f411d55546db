"""`features`, `report` and `overlap` on codes several times larger than `--memory` beside the same with all in memory.

usage: codes.py --sae target/release/sae [--proteins 20000] [--length 150] [--share 8] [--out FILE.md]

Residues of proteins, labelled by protein. `--memory` is a share of the codes at 12 bytes each; overlap, which keeps a count
and a sum per protein and latent, gets the same share of these. Peaks are those of the system's own accounting (ru_maxrss).
Ends with an error where a file that is written, or what is printed, is not the same bytes.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--sae", required=True)
parser.add_argument("--proteins", type=int, default=20000)
parser.add_argument("--length", type=int, default=150)
parser.add_argument("--share", type=int, default=8)
parser.add_argument("--out")
args = parser.parse_args()
D, M, K = 64, 1024, 32


def run(command):
    """Seconds, peak bytes and what a command prints."""
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as told:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=printed, stderr=told)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        printed.seek(0)
        told.seek(0)
        assert status == 0, told.read().decode()
        return seconds, usage.ru_maxrss * 1024, printed.read()


with tempfile.TemporaryDirectory(dir=".") as folder:
    place = Path(folder)
    data, labels, model, out = place / "rows.h5", place / "labels.tsv", place / "run", place / "out"
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((24, D), np.float32)
    with h5py.File(data, "w") as file:
        for protein in range(args.proteins):
            codes = np.maximum(rng.standard_normal((args.length, 24), np.float32), 0)
            rows = codes @ basis + 0.1 * rng.standard_normal((args.length, D), np.float32)
            file[f"P{protein:05}"] = rows.astype(np.float16)
    lines = [f"P{protein:05}\t{'ABCD'[protein % 4]}\tf{protein % 7}\n" for protein in range(args.proteins)]
    labels.write_text("id\tkind\tfamily\n" + "".join(lines))
    options = ["--latents", str(M), "-k", str(K), "--steps", "200", "--device=cpu", "--quiet"]
    run([args.sae, "train", data, "--out", model, *options])
    common = [model, data, "--device=cpu", "--quiet"]
    _, without, found = run([args.sae, "features", *common, "--json"])
    n_codes = sum(latent["active_rows"] for latent in json.loads(found)["latents"])
    n_sums = args.proteins * M
    lines = [
        f"{args.proteins * args.length:,} rows of {D} float16 ({data.stat().st_size / 1e6:.0f} MB), M {M}, {n_codes:,} codes; "
        f"{os.cpu_count()} cores. `features` without labels, which keeps no codes: {without / 1e6:.0f} MB",
        "",
        "| command | codes, MB | --memory, MB | s | peak, MB | --memory all: s | peak, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, size, more in (
        ("features", 12 * n_codes, ["--associations", out]),
        ("report", 12 * n_codes, ["-o", out]),
        ("overlap", 12 * n_sums, ["--column=kind", "--groups=A,B", "--permutations=100", "-o", out]),
    ):
        memory = size // args.share
        made = []
        for limit in (str(memory), "all"):
            command = [args.sae, name, *common, "--labels", labels, *more, "--overwrite", "--memory", limit]
            made.append((*run(command), out.read_bytes()))
        assert made[0][2:] == made[1][2:], f"{name} differs with --memory {memory}"
        figures = [f"{seconds:.1f} | {peak / 1e6:.0f}" for seconds, peak, *_ in made]
        lines.append(f"| {name} | {size / 1e6:.0f} | {memory / 1e6:.1f} | {' | '.join(figures)} |")

print("\n".join(lines))
if args.out:
    Path(args.out).write_text("\n".join(lines) + "\n")
