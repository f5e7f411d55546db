"""Latents along one protein."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _engine
from ._data import PathLike
from ._engine import UsageError

if TYPE_CHECKING:
    import pandas


class Track:
    """The activations of some latents along the rows of one id, such as the residues of a protein.

    `positions` (L,) counts from 1, `ids` has the id of each row, `latents` (n,) the numbers of the latents and
    `activations` (L, n), float32, their values.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        #: The id.
        self.id: str = found["id"]
        #: Rows that were dropped; their positions are left out.
        self.skipped_rows: int = found["skipped_rows"]
        self.positions = np.array(found["positions"], np.int64)
        self.ids: list[str] = found["ids"]
        self.latents = np.array([latent["latent"] for latent in found["latents"]], np.int64)
        self.activations = np.array([latent["activations"] for latent in found["latents"]], np.float32).T

    def __len__(self) -> int:
        return len(self.positions)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per row, with its position as the index: its id, and a column per latent, `latent_12`."""
        import pandas

        columns = {f"latent_{latent}": self.activations[:, j] for j, latent in enumerate(self.latents)}
        index = pandas.Index(self.positions, name="position")
        return pandas.DataFrame({"id": self.ids, **columns}, index=index)

    def colour(
        self,
        structure: PathLike,
        out: PathLike,
        *,
        latent: int | None = None,
        chain: str | Sequence[str] = (),
        match: Literal["order", "number"] = "order",
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Writes a copy of a structure (PDB or mmCIF, also gzipped) whose B-factors show a latent, by default the first.

        100 is its largest activation along these rows, 0 stands for all other atoms. `chain` names one or several; of
        these arguments `sae features --help` says more. Gives the `chains`, how many `residues` have a value and how many
        have none (`without_row`), and other chains that are as long (`alike`).
        """
        if self.skipped_rows:
            raise UsageError(f"{self.skipped_rows} rows of {self.id} were dropped: residues would have no figure")
        at = np.flatnonzero(self.latents == (self.latents[0] if latent is None else latent))
        if not len(at):
            raise UsageError(f"the track has no latent {latent}; it has {', '.join(map(str, self.latents))}")
        values = self.activations[:, at[0]].astype(np.float64)
        largest = np.abs(values).max()
        if largest > 0:
            values = 100 * values / largest
        chains = [chain] if isinstance(chain, str) else list(chain)
        text = _engine.colour(Path(structure), Path(out), self.id, values.tolist(), chains, match, overwrite)
        placed: dict[str, Any] = json.loads(text)
        return placed

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(max_rows=20))

    def __repr__(self) -> str:
        return f"<Track of {len(self.latents)} latents along {self.id}, {len(self)} rows>"
