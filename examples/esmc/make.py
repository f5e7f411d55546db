"""Makes the folder that the book's chapter on published models uses: nothing here was learnt or measured.

    python3 examples/esmc/make.py examples/esmc      # needs numpy, h5py, safetensors; the same bytes each time

Residues are sums of a few of 24 random directions, their motifs; the autoencoder of layer 23 was given those directions as
its first latents and random ones as the rest, that of layer 12 random ones alone.
"""
import json
import sys
from pathlib import Path

import h5py
import numpy as np
from safetensors.numpy import save_file

D, M, K, MOTIFS, PROTEINS = 32, 64, 4, 24, 40
folder = Path(sys.argv[1])
rng = np.random.default_rng(0)


def unit(rows):
    """Rows of mean 0 and length 1, as differences between normalised rows are."""
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


motifs = unit(rng.standard_normal((MOTIFS, D)))
lines = ["id\tmotif\tsite"]
with h5py.File(folder / "residues.h5", "w", track_order=True) as f:
    for i in range(PROTEINS):
        length = int(rng.integers(20, 40))
        active = rng.random((length, MOTIFS)) < 2 / MOTIFS
        strength = active * rng.uniform(1, 3, active.shape)
        rows = 0.5 + 0.1 * rng.standard_normal((length, D)) + strength @ motifs
        f.create_dataset(f"MADE{i:03}", data=rows.astype(np.float16), track_times=False)
        for residue in range(length):
            found = ";".join(f"motif {m}" for m in np.flatnonzero(active[residue])) or "none"
            lines.append(f"MADE{i:03}:{residue + 1}\t{found}\t{'yes' if active[residue, 0] else 'no'}")
(folder / "residues.tsv").write_text("\n".join(lines) + "\n")

layers = {12: unit(rng.standard_normal((M, D))), 23: np.concatenate([motifs, unit(rng.standard_normal((M - MOTIFS, D)))])}
for layer, rows in layers.items():
    save_file(
        {
            "W_enc": np.ascontiguousarray(rows.T, np.float32),
            "W_dec": rows.astype(np.float32),
            "b_dec": np.zeros(D, np.float32),
            "idf": np.ones(M, np.float32),
            "max": np.ones(M, np.float32),
        },
        folder / f"layer_{layer}.safetensors",
    )
config = {
    "model_type": "esmc_sae",
    "d_model": D,
    "codebook_dim": M,
    "k": K,
    "available_layers": sorted(layers),
    "use_residual_update_instead_of_states": False,
}
(folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
