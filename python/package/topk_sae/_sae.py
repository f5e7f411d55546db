"""A trained model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from scipy.sparse import csr_array

from . import _engine
from ._data import Data, Folder, PathLike, Texts, engine_data, option_texts, paths_of
from ._engine import UsageError
from ._features import Features, Labels, asked_of, features_of
from ._track import Track

if TYPE_CHECKING:
    from ._torch import TorchSae

#: Rows that are decoded at a time.
_BLOCK = 4096


class Codes(csr_array):
    """Sparse codes (N, M), float32, with the mean and deviation of the rows they were made of.

    A `scipy.sparse.csr_array` in every way. `row_mean` and `row_std` (N,) are there for a model that normalises each
    row; they are None for one that does not, and where codes were made by slicing or arithmetic.
    """

    row_mean: np.ndarray | None = None
    row_std: np.ndarray | None = None


class Sae:
    """A trained sparse autoencoder. `topk_sae.load` gives one.

    Tensors are read-only arrays on the engine's memory: `w_enc` and `w_dec` (M, D), one row per latent, `b_pre` (D,) and
    `b_lat` (M,), and `threshold` (M,) where codes are made by thresholds.
    """

    def __init__(self, model: _engine.Model, path: Path | None = None, keep: object = None) -> None:
        self._model = model
        self._keep = keep
        self._folder: Folder | None = None
        #: The run folder or file that it was loaded from, if there is one.
        self.path = path
        #: What it takes to run the model.
        self.architecture: dict[str, Any] = json.loads(model.architecture)
        #: Where it came from: version, preset, seed, steps, options.
        self.provenance: dict[str, Any] = json.loads(model.provenance)

    @property
    def w_enc(self) -> np.ndarray:
        """Encoder (M, D), one row per latent; read-only."""
        return self._model.tensor("w_enc")

    @property
    def w_dec(self) -> np.ndarray:
        """Decoder (M, D), one row per latent; read-only. That of a tied model is `w_enc`."""
        return self._model.tensor("w_dec")

    @property
    def b_pre(self) -> np.ndarray:
        """Pre-bias (D,): taken from each row, and added to each reconstruction; read-only."""
        return self._model.tensor("b_pre")

    @property
    def b_lat(self) -> np.ndarray:
        """Bias of the latents (M,); read-only."""
        return self._model.tensor("b_lat")

    @property
    def threshold(self) -> np.ndarray | None:
        """A score above it is active (M,); read-only. `None` where codes are not made by thresholds."""
        by_threshold = self.architecture["inference"] == "threshold"
        return self._model.tensor("threshold") if by_threshold else None

    @property
    def d_in(self) -> int:
        """Values of a row, D."""
        return int(self.architecture["d_in"])

    @property
    def n_latents(self) -> int:
        """Latents, M."""
        return int(self.architecture["n_latents"])

    @property
    def k(self) -> int:
        """Most active latents of a row; M where the model has no places per row."""
        return int(self.architecture["k"]) if self.architecture["inference"] == "topk" else self.n_latents

    @property
    def normalize(self) -> bool:
        """Whether each row is normalised before the encoder, and the reconstruction put back."""
        return bool(self.architecture["normalize"])

    @overload
    def encode(self, x: Any, format: Literal["csr"] = "csr", device: str = "auto") -> Codes: ...
    @overload
    def encode(
        self, x: Any, format: Literal["topk"], device: str = "auto"
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def encode(
        self, x: Any, format: Literal["csr", "topk"] = "csr", device: str = "auto"
    ) -> Codes | tuple[np.ndarray, np.ndarray]:
        """Sparse codes of rows `x` (N, D) of float16, float32 or float64, which are read in place.

        With `format="csr"` a `scipy.sparse.csr_array` (N, M) of float32. With `format="topk"` values and indices
        (N, k), each row falling; where a row has fewer than k active latents the rest is 0 with index -1.
        """
        if format not in ("csr", "topk"):
            raise UsageError(f"format={format!r} is not 'csr' or 'topk'")
        x = np.asarray(x)
        indptr, latents, values = self._model.encode(x, device)
        n = len(indptr) - 1
        if format == "topk":
            return _top(indptr, latents, values, min(self.k, self.n_latents))
        codes = Codes((values, latents, indptr), shape=(n, self.n_latents))
        if self.normalize:
            codes.row_mean, codes.row_std = self._row_statistics(x)
        return codes

    def _row_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased deviation of each row."""
        mean, std = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
        for start in range(0, len(x), _BLOCK):
            part = slice(start, start + _BLOCK)
            rows = x[part].astype(np.float32, copy=False)
            mean[part] = rows.mean(axis=1)
            rows = rows - mean[part, None]
            std[part] = np.sqrt(np.einsum("ij,ij->i", rows, rows) / max(rows.shape[1] - 1, 1))
        return mean, std

    def decode(self, codes: Any, like: Any = None) -> np.ndarray:
        """The rows (N, D) that `codes` (N, M), sparse or dense, stand for, as float32.

        A model that normalises each row puts its mean and deviation back: those that `encode` kept in its codes, or
        those of the rows `like` (N, D), for codes that were made or changed otherwise.
        """
        mean, std = getattr(codes, "row_mean", None), getattr(codes, "row_std", None)
        if like is not None:
            mean, std = self._row_statistics(np.asarray(like))
        if codes.shape[1] != self.n_latents:
            raise UsageError(f"the codes have {codes.shape[1]} latents and the model {self.n_latents}")
        if self.normalize and (mean is None or std is None):
            raise UsageError(
                "this model normalises rows, and these codes do not know mean and deviation of theirs; "
                "give the rows: sae.decode(codes, like=x)"
            )
        if mean is not None and len(mean) != codes.shape[0]:
            raise UsageError(f"{codes.shape[0]} codes and {len(mean)} rows; give as many rows as codes")
        out = self._weighted(codes)
        out += self.b_pre
        if self.normalize and mean is not None and std is not None:
            out *= std[:, None]
            out += mean[:, None]
        return out

    def _weighted(self, codes: Any) -> np.ndarray:
        """Codes times decoder, as float32."""
        sparse = getattr(codes, "nnz", codes.shape[0] * codes.shape[1]) * 8 < codes.shape[0] * codes.shape[1]
        if sparse:
            return np.asarray(codes @ self.w_dec, dtype=np.float32)
        out = np.empty((codes.shape[0], self.d_in), np.float32)
        for start in range(0, len(out), _BLOCK):
            part = codes[start : start + _BLOCK]
            dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
            np.matmul(dense.astype(np.float32, copy=False), self.w_dec, out=out[start : start + _BLOCK])
        return out

    def evaluate(
        self,
        data: Data,
        *,
        ids: str | Texts | None = None,
        split: Literal["all", "train", "val", "test", "each"] = "all",
        device: str = "auto",
        **reading: Any,
    ) -> dict[str, Any]:
        """Figures on rows: an array (N, D), or files with the options that say how they are read.

        A dict with `rows`, `mse`, `mae`, `fvu`, `l0`, `cosine` and `dead_on_these_rows`. Splits are those of the run
        that the model was loaded from, by `ids`; with `split="each"` a dict of such dicts, one per split that has rows.
        """
        rows = engine_data(data, ids, None, reading)
        text = _engine.evaluate(self._file(), rows, split, option_texts(reading), device)
        results = json.loads(text)
        return {result["split"]: result for result in results} if split == "each" else results[0]

    def features(
        self,
        data: Data,
        *,
        ids: str | Texts | None = None,
        labels: Labels | None = None,
        columns: Sequence[str] | None = None,
        split: Literal["all", "train", "val", "test"] = "all",
        pool: bool = False,
        top: int = 10,
        neighbours: int = 5,
        min_rows: int = 10,
        max_values: int = 500,
        unknown: Sequence[str] = ("NA", "N/A", "NaN", "nan"),
        memory: str | int | None = None,
        device: str = "auto",
        **reading: Any,
    ) -> Features:
        """What each latent fires on: a table of one row per latent.

        `data` is an array (N, D) with `ids`, or files. `labels` is a table of ids and their labels: a frame of pandas,
        whose column `id`, or else its index, has the ids, or a tab-separated file. Of the other arguments
        `sae features --help` says more.
        """
        rows = engine_data(data, ids, None, reading)
        asked = asked_of(
            columns,
            unknown,
            split=split,
            pool=pool,
            top=top,
            neighbours=neighbours,
            min_rows=min_rows,
            max_values=max_values,
        )
        return features_of(self._file(), rows, labels, asked, option_texts({**reading, "memory": memory}), device)

    def track(
        self,
        data: Data,
        id: str,
        *,
        latents: Sequence[int] | None = None,
        tokens: tuple[int, int] = (0, 0),
        ids: str | Texts | None = None,
        device: str = "auto",
        **reading: Any,
    ) -> Track:
        """Latents along one protein: `id` of a per-residue file, of which no other rows are read, or the rows of an array
        whose `ids` are `id:1`, `id:2` and so on; an array without ids is all of the protein.

        `latents` are by default the eight with the largest activations along it; `tokens` are rows at the start and at
        the end that are no residues, such as (1, 1) for ESM.
        """
        if ids is None and paths_of(data) is None:
            array: Any = data
            ids = [f"{id}:{n + 1}" for n in range(len(array))]
        rows = engine_data(data, ids, None, reading)
        wanted = None if latents is None else [int(latent) for latent in latents]
        text = _engine.track(self._file(), rows, id, wanted, tokens, option_texts(reading), device)
        return Track(json.loads(text))

    def save(self, path: PathLike, overwrite: bool = False) -> None:
        """Writes the model as a file, usually named `model.safetensors`."""
        self._model.save(Path(path), overwrite)

    def to_torch(
        self, *, unit_norm: bool = False, model_name: str = "", hook_layer: int = 0, hook_name: str = ""
    ) -> TorchSae:
        """The model as a `torch.nn.Module` with `encode`, `decode` and `forward`; its parameters are copies.

        It has the attributes that SAEBench asks for. With `unit_norm`, which SAEBench recommends, decoder rows have length
        1 and the codes are longer instead; reconstructions stay the same. `model_name`, `hook_layer` and `hook_name` say
        which activations of a language model it is for. torch must be installed.
        """
        from ._torch import TorchSae

        return TorchSae(self, unit_norm, model_name, hook_layer, hook_name)

    def _file(self) -> Path:
        """Where the engine finds the model: what it was loaded from, or a file made for it."""
        if self.path is not None and self.path.exists():
            return self.path
        if self._folder is None:
            self._folder = Folder()
        file = self._folder.path / "model.safetensors"
        if not file.exists():
            self.save(file)
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            self.save(file)
            return _from_bytes, (file.read_bytes(),)

    def __repr__(self) -> str:
        k = f"k={self.k}" if self.k < self.n_latents else "relu"
        return f"<Sae d_in={self.d_in} n_latents={self.n_latents} {k}>"


def _top(
    indptr: np.ndarray, latents: np.ndarray, values: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    n = len(indptr) - 1
    row = np.repeat(np.arange(n), np.diff(indptr))
    order = np.lexsort((-np.abs(values), row))
    place = np.arange(len(values)) - indptr[row]
    out, indices = np.zeros((n, k), np.float32), np.full((n, k), -1, np.int64)
    out[row, place] = values[order]
    indices[row, place] = latents[order]
    return out, indices


def _from_bytes(model: bytes) -> Sae:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(model)
        return Sae(_engine.Model(file, None, None, False, None, []))


def load(
    path: PathLike,
    *,
    format: str | None = None,
    k: int | None = None,
    normalize: bool = False,
    layer: int | None = None,
    ignore: Sequence[str] = (),
) -> Sae:
    """A model: a run folder, a `model.safetensors`, or a folder or file of another library.

    Those of other libraries are SAELens, sparsify, dictionary_learning, InterProt, OpenAI's, Biohub's of ESMC and Gemma Scope;
    `format`, `k`, `normalize`, `layer` and `ignore` are for them, and mean what `sae import --help` says.
    """
    # Absolute, for the working folder may change.
    place = Path(path).absolute()
    model = _engine.Model(Path(path), format, k, normalize, layer, list(ignore))
    return Sae(model, place if model.own else None)
