"""Makes sparse matrices from `sae encode` as the README shows and checks them against the model, in NumPy float64.

usage: check_codes.py RUN DATA.h5 CODES.h5 [RELU_MODEL RELU_CODES.h5]
"""
import json
import os
import sys

import h5py
import numpy as np
import scipy.sparse
from safetensors import safe_open


def scores(model, data, ids):
    path = os.path.join(model, "model.safetensors") if os.path.isdir(model) else model
    with safe_open(path, "np") as f:
        cfg = json.loads(f.metadata()["architecture"])
        w_enc, b_pre, b_lat = (f.get_tensor(n).astype(np.float64) for n in ("w_enc", "b_pre", "b_lat"))
    with h5py.File(data) as f:
        assert ids == sorted(f), "ids differ"
        x = np.stack([f[i][()] for i in ids]).astype(np.float64)
    if cfg["normalize"]:
        x = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + cfg["norm_eps"])
    return cfg, (x - b_pre) @ w_enc.T + b_lat


def check(what, got, want):
    assert got.shape == want.shape, (what, got.shape, want.shape)
    miss = abs(got.toarray() - want).max()
    assert miss <= 1e-5 * max(1.0, abs(want).max()), (what, miss)
    print(f"{what}: {got.shape[0]} rows, {got.nnz} entries, largest difference {miss:.1e}")


run, data, codes, *relu = sys.argv[1:]
f = h5py.File(codes)
ids, (n, k), m = f["ids"].asstr()[:], f["values"].shape, f.attrs["width"]
topk = scipy.sparse.csr_matrix((f["values"][:].ravel(), f["indices"][:].ravel(), np.arange(n + 1) * k), (n, m))
topk.eliminate_zeros()
cfg, z = scores(run, data, list(ids))
assert (k, m, f.attrs["inference"]) == (cfg["k"], cfg["n_latents"], "topk")
h = np.zeros_like(z)
order = np.argsort(-z, axis=1, kind="stable")[:, :k]
np.put_along_axis(h, order, np.maximum(np.take_along_axis(z, order, 1), 0), 1)
check("top k", topk, h)

if relu:
    model, codes = relu
    f = h5py.File(codes)
    ids, m = f["ids"].asstr()[:], f.attrs["width"]
    csr = scipy.sparse.csr_matrix((f["data"][:], f["indices"][:], f["indptr"][:]), (len(ids), m))
    check("relu", csr, np.maximum(scores(model, data, list(ids))[1], 0))
