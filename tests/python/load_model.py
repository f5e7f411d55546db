"""Loads a run's model as the book shows (NumPy in place of PyTorch) and checks the figures in summary.json.

usage: load_model.py RUN DATA.h5
"""
import json
import sys

import h5py
import numpy as np
from safetensors import safe_open

run, data = sys.argv[1:]
with safe_open(f"{run}/model.safetensors", "np") as f:
    cfg = json.loads(f.metadata()["architecture"])
    w_enc, w_dec, b_pre, b_lat = (f.get_tensor(n).astype(np.float64) for n in ("w_enc", "w_dec", "b_pre", "b_lat"))
assert w_enc.shape == w_dec.shape == (cfg["n_latents"], cfg["d_in"])

split = dict(line.rstrip("\n").split("\t") for line in open(f"{run}/splits.tsv").readlines()[1:])
summary = json.load(open(f"{run}/summary.json"))
with h5py.File(data) as f:
    rows = {part: np.stack([f[k][()] for k in sorted(f) if split[k] == part]).astype(np.float64)
            for part in ("train", "val", "test")}

for part, x in rows.items():
    mean = x.mean(1, keepdims=True) if cfg["normalize"] else 0.0
    std = x.std(1, ddof=1, keepdims=True) if cfg["normalize"] else 1.0
    xn = (x - mean) / (std + cfg["norm_eps"]) if cfg["normalize"] else x
    z = (xn - b_pre) @ w_enc.T + b_lat
    order = np.argsort(-z, axis=1, kind="stable")[:, : cfg["k"]]
    h = np.zeros_like(z)
    np.put_along_axis(h, order, np.maximum(np.take_along_axis(z, order, 1), 0), 1)
    y = (h @ w_dec + b_pre) * std + mean
    fvu = ((y - x) ** 2).sum() / ((x - rows["train"].mean(0)) ** 2).sum()
    for name, value in (("mse", ((y - x) ** 2).mean()), ("mae", abs(y - x).mean()), ("fvu", fvu), ("l0", (h > 0).sum(1).mean())):
        stored = summary[part][name]
        assert abs(value - stored) <= 1e-4 * abs(stored), (part, name, value, stored)
    print(f"{part}: {len(x)} rows, FVU {fvu:.4f}, as summary.json says")
