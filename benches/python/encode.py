"""Encoding from Python beside the command, and beside the same model in PyTorch on the CPU, in turns within one run.

usage: encode.py [ROWS]        (needs torch, h5py and topk_sae)

The command's time is the one that it tells itself: reading, encoding and writing the codes.
"""
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import topk_sae
import torch

N, D, M, K, TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, 1024, 8192, 32, 5
rng = np.random.default_rng(0)
x = np.empty((N, D), np.float32)
for start in range(0, N, 10_000):
    x[start : start + 10_000] = rng.standard_normal((min(10_000, N - start), D), np.float32)

with tempfile.TemporaryDirectory() as folder:
    place = Path(folder)
    sae = topk_sae.train(
        x[:4096], latents=M, k=K, steps=5, batch_size=512, eval_rows=16, out=place / "run", device="cpu", progress=False
    ).sae
    with h5py.File(place / "rows.h5", "w") as file:
        file["rows"] = x
    module = sae.to_torch()

    def command() -> float:
        args = ["sae", "--device=cpu", "encode", place / "run", place / "rows.h5", "-o", place / "codes.h5", "--overwrite"]
        told = subprocess.run(args, check=True, capture_output=True, text=True).stderr
        return float(re.search(r"encoding: .* rows \(([0-9.]+) s\)", told).group(1))

    def python() -> float:
        began = time.perf_counter()
        sae.encode(x, device="cpu")
        return time.perf_counter() - began

    def pytorch() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for rows in torch.from_numpy(x).split(1024):
                rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + module.eps)
                values, indices = torch.topk((rows - module.b_dec) @ module.W_enc + module.b_enc, K)
                values.relu_()
        return time.perf_counter() - began

    times: dict[str, list[float]] = {"command": [], "python": [], "pytorch": []}
    for _ in range(TURNS):
        for name, run in (("command", command), ("python", python), ("pytorch", pytorch)):
            times[name].append(run())

print(f"{N} rows, D {D}, M {M}, k {K}; {torch.get_num_threads()} threads of PyTorch {torch.__version__}, {platform.machine()}")
for name, all_of in times.items():
    print(f"{name:8} {median(all_of):6.2f} s   " + " ".join(f"{seconds:.2f}" for seconds in all_of))
turns = lambda a, b: median(s / t for s, t in zip(times[a], times[b]))
print(f"python / command {turns('python', 'command'):.3f}   pytorch / python {turns('pytorch', 'python'):.2f}   (medians of turns)")
