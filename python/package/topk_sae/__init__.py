"""Sparse autoencoders on embeddings: train them, load them, look at what their latents fire on.

>>> import topk_sae
>>> run = topk_sae.train(x, ids=ids, k=32)     # an array (N, D), or files: topk_sae.train("embeddings.h5")
>>> codes = run.sae.encode(x)                  # scipy.sparse.csr_array (N, M)
>>> run.sae.features(x, ids=ids, labels=frame).to_pandas()

Symbols: N rows, D values of a row, M latents, k active latents of a row.
"""

from __future__ import annotations

from ._engine import DataError, ModelError, UsageError, __version__
from ._features import Features
from ._options import Options
from ._report import Report, report
from ._sae import Codes, Sae, load
from ._track import Track
from ._train import Run, resume, train

__all__ = [
    "Codes",
    "DataError",
    "Features",
    "ModelError",
    "Options",
    "Report",
    "Run",
    "Sae",
    "Track",
    "UsageError",
    "__version__",
    "load",
    "report",
    "resume",
    "train",
]


def _console() -> int:
    """The program `sae`."""
    import signal
    import sys

    # The program heeds signals itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import _engine

    return _engine.console(sys.argv)
