"""The page of a run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _engine
from ._data import Data, PathLike, Texts, engine_data, folder_of, option_texts
from ._features import Labels, asked_of, labels_file

if TYPE_CHECKING:
    from ._train import Run


class Report:
    """A page of a run, which shows itself in a notebook."""

    def __init__(self, path: Path) -> None:
        #: The file.
        self.path = path

    @property
    def html(self) -> str:
        """The page."""
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        page = html.escape(self.html)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 720px; border: 1px solid #ccc"></iframe>'

    def __repr__(self) -> str:
        return f"<Report {self.path}>"


def report(
    run: PathLike | Run,
    data: Data | None = None,
    *,
    ids: str | Texts | None = None,
    labels: Labels | None = None,
    columns: Sequence[str] | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    split: Literal["all", "train", "val", "test"] = "all",
    features: int = 500,
    top: int = 8,
    neighbours: int = 3,
    pool: bool = False,
    min_rows: int = 10,
    max_values: int = 500,
    unknown: Sequence[str] = ("NA", "N/A", "NaN", "nan"),
    memory: str | int | None = None,
    device: str = "auto",
    **reading: Any,
) -> Report:
    """Puts a run on one HTML page: settings, curves, figures, latents with their ids and labels.

    `run` is a run or its folder. `data` are the files that it was trained on where none are given; a run of an array
    needs the array. The page goes to `out`, or to `report.html` in the run folder, where an earlier one is replaced.
    Of the other arguments `sae report --help` says more.
    """
    folder = folder_of(run)
    rows = [] if data is None else engine_data(data, ids, None, reading)
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
    place = None if out is None else Path(out)
    with labels_file(labels) as file:
        path = _engine.report(
            folder,
            rows,
            {**asked, "labels": file},
            features,
            place,
            overwrite or place is None,
            option_texts({**reading, "memory": memory}),
            device,
        )
    return Report(path)
