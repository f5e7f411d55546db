"""What latents fire on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _engine
from ._data import PathLike, is_path
from ._engine import UsageError

if TYPE_CHECKING:
    import pandas

#: A table of ids and labels: a frame of pandas, or a tab-separated file.
Labels: TypeAlias = "PathLike | pandas.DataFrame"


@contextmanager
def labels_file(labels: Labels | None) -> Iterator[Path | None]:
    """The file of a table of labels; a frame is written into one for the time being."""
    if labels is None or is_path(labels):
        yield None if labels is None else Path(labels)
        return
    if not (hasattr(labels, "to_csv") and hasattr(labels, "columns")):
        raise UsageError("labels are a frame of pandas, or the path of a tab-separated table")
    frame: Any = labels
    if "id" in frame.columns:
        frame = frame.set_index("id")
    # Whole numbers with gaps between them are floats in pandas; the label is 8, not 8.0.
    frame = frame.convert_dtypes()
    with tempfile.TemporaryDirectory(prefix="topk-sae-") as folder:
        file = Path(folder) / "labels.tsv"
        frame.to_csv(file, sep="\t", index_label="id")
        yield file


class Features:
    """What each latent fires on, and which label it predicts best.

    `latents` is a list of dicts, one per latent in order: `latent`, `active_rows`, `firing_rate`, `mean_activation`,
    `max_activation`, `top` (ids and activations), `neighbours`, and `best` (the label; None without labels).
    `labels` says what was found with labels; None without.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.latents: list[dict[str, Any]] = found.pop("latents")
        self.labels: dict[str, Any] | None = found.pop("labels")
        #: Rows that were encoded, ids, latents that fire (`alive`) and all (`width`).
        self.figures: dict[str, Any] = found

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, latent: int) -> dict[str, Any]:
        return self.latents[latent]

    def to_pandas(self) -> pandas.DataFrame:
        """One row per latent; lists of ids and neighbours stay lists."""
        import pandas

        rows = []
        for latent in self.latents:
            row = {name: value for name, value in latent.items() if name not in ("top", "neighbours", "best")}
            row["top_ids"] = [top["id"] for top in latent["top"]]
            row["top_activations"] = [top["activation"] for top in latent["top"]]
            row["neighbours"] = [near["latent"] for near in latent["neighbours"]]
            if self.labels is not None:
                row.update(latent["best"] or {})
            rows.append(row)
        return pandas.DataFrame(rows).set_index("latent")

    def _repr_html_(self) -> str:
        table = self.to_pandas().sort_values("active_rows", ascending=False)
        return str(table.to_html(max_rows=20))

    def __repr__(self) -> str:
        alive, width = self.figures["alive"], self.figures["width"]
        return f"<Features of {width} latents, {alive} fire on {self.figures['rows']} rows>"


def asked_of(columns: Sequence[str] | None, unknown: Sequence[str], **others: Any) -> dict[str, Any]:
    """What is asked of latents, as the engine takes it."""
    return {**others, "columns": None if columns is None else list(columns), "unknown": list(unknown)}


def features_of(
    model: Path, rows: Any, labels: Labels | None, asked: dict[str, Any], options: list[tuple[str, str]], device: str
) -> Features:
    """Asks the engine."""
    with labels_file(labels) as file:
        text = _engine.features(model, rows, {**asked, "labels": file}, options, device)
    return Features(json.loads(text))
