from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples/data/prott5_uniprot_3ftx.h5"
LABELS = ROOT / "examples/data/prott5_uniprot_3ftx.tsv"
#: A small model of these proteins in a few seconds.
SMALL = {"latents": 256, "k": 8, "steps": 60, "batch_size": 128, "eval_every": 20, "device": "cpu"}


@pytest.fixture(scope="session")
def proteins():
    """Ids and rows (536, 1024), float16, of the sample file, in its order."""
    with h5py.File(FILE) as file:
        ids = sorted(file)
        return ids, np.stack([file[name][()] for name in ids])


@pytest.fixture(scope="session")
def run(proteins, tmp_path_factory):
    """A run of the array."""
    import topk_sae

    ids, x = proteins
    return topk_sae.train(x, ids=ids, out=tmp_path_factory.mktemp("run") / "array", **SMALL)
