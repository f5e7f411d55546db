"""Training."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from . import _engine
from ._data import Data, Folder, PathLike, Texts, engine_data, folder_of, option_texts, paths_of
from ._engine import UsageError
from ._options import Options
from ._sae import Sae, load

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

#: Is called with what a training tells: a dict of `step`, `steps`, `loss` and `rows_per_second` several times a second,
#: and after each evaluation one with `metrics`, the new line of `metrics.csv` as nested dicts.
Progress = Callable[[dict[str, Any]], object]


class Run:
    """A training that is done: its folder, figures and model."""

    def __init__(self, path: PathLike, keep: object = None) -> None:
        #: The run folder. That of a run without `out` goes when nothing refers to the run or its model any more.
        self.path = Path(path)
        self._keep = keep
        summary = self.path / "summary.json"
        if not summary.is_file():
            raise UsageError(f"{self.path} has no summary.json; finish it with topk_sae.resume({str(self.path)!r})")
        #: Final figures: of `train`, `val` and `test` rows, `dead_fraction`, `rows_per_second` and more.
        self.summary: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """The lines of `metrics.csv`, one dict per evaluation: `pandas.DataFrame(run.metrics)`."""
        with open(self.path / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [{name: float(value) if value else None for name, value in row.items()} for row in rows]

    @property
    def sae(self) -> Sae:
        """The trained model."""
        model = load(self.path)
        model._keep = self._keep
        return model

    def __repr__(self) -> str:
        val = self.summary.get("val") or {}
        fvu = f" fvu={val['fvu']:.4f}" if val.get("fvu") is not None else ""
        place = "" if self._keep else f" {self.path}"
        return f"<Run{place} steps={self.summary['steps']}{fvu}>"


def train(
    data: Data,
    *,
    ids: str | Texts | None = None,
    groups: PathLike | Texts | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool | Progress | None = None,
    **options: Unpack[Options],
) -> Run:
    """Trains a sparse autoencoder.

    Parameters
    ----------
    data
        Rows: an array (N, D) of float16, float32 or float64, C-contiguous, which is read in place and must not be
        written to meanwhile; a frame of pandas; or files of embeddings.
    ids
        One id for each row of an array: the split goes by them. Without ids rows are numbered. For files a text, as
        `--ids` has it.
    groups
        What each row of an array belongs to (a family, a donor): a group stays in one split. Or a table of id and group.
    out
        The run folder. Files have one named after them where none is given; an array has a temporary one.
    overwrite
        Replace a run that is there.
    device
        `auto`, `cpu`, `cuda` or `cuda:1`.
    progress
        False shows none; None shows it on a terminal or in a notebook; a function is called with it.
    **options
        The options of `sae train`, with `_` in place of `-`: `k=32`, `latents=8192`, `steps=2000`.

    Ctrl-C ends it with a checkpoint, from which `resume` goes on.
    """
    given: dict[str, Any] = dict(options)
    of_files = paths_of(data) is not None
    rows = engine_data(data, ids, groups, given)
    keep = None
    if out is None and not of_files:
        keep = Folder()
        out = keep.path / "run"
    shows, hear = _progress(progress)
    place = None if out is None else Path(out)
    try:
        folder = _engine.train(rows, place, False, overwrite, option_texts(given), device, shows, hear)
    except KeyboardInterrupt:
        if keep is None:
            raise
        raise KeyboardInterrupt("interrupted; the run has no folder (out=...), so nothing is kept") from None
    return Run(folder, keep)


def resume(
    run: PathLike | Run,
    data: Data | None = None,
    *,
    ids: Texts | None = None,
    groups: Texts | None = None,
    device: str = "auto",
    progress: bool | Progress | None = None,
    **options: Any,
) -> Run:
    """Goes on with a run that was interrupted, to the same bits as one that was not.

    A run of files reads them again. One of an array is given the same array, ids and groups as before, and
    `skip_bad_rows` if it had that.
    """
    folder = folder_of(run)
    rows: Any = []
    if data is not None:
        if paths_of(data) is not None:
            raise UsageError(f"{folder} knows its files; leave data out")
        rows = engine_data(data, ids, groups, options)
    if options:
        raise UsageError(f"a run keeps its options; leave out {', '.join(options)}, or train anew")
    shows, hear = _progress(progress)
    return Run(_engine.train(rows, folder, True, False, [], device, shows, hear))


def _progress(progress: bool | Progress | None) -> tuple[bool, Callable[..., object] | None]:
    """Whether the engine shows progress on the terminal, and what it calls."""
    if callable(progress):
        return False, _heard(progress)
    if progress is False:
        return False, None
    if _in_notebook():
        return False, _heard(_Line())
    return progress is True or sys.stderr.isatty(), None


def _heard(progress: Progress) -> Callable[..., object]:
    def hear(step: int, steps: int, loss: float, rows_per_second: float, metrics: str | None) -> None:
        if metrics is None:
            progress({"step": step, "steps": steps, "loss": loss, "rows_per_second": rows_per_second})
        else:
            progress({"metrics": json.loads(metrics)})

    return hear


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


class _Line:
    """One line of a notebook's output that is written over."""

    def __init__(self) -> None:
        display: Any = import_module("IPython.display")
        self.fvu = ""
        self.handle: Any = display.display({"text/plain": "training ..."}, raw=True, display_id=True)

    def __call__(self, event: dict[str, Any]) -> None:
        if metrics := event.get("metrics"):
            fvu = (metrics.get("val") or {}).get("fvu")
            self.fvu = "" if fvu is None else f"  validation FVU {fvu:.4f}"
            return
        text = (
            f"step {event['step']:,} of {event['steps']:,}  loss {event['loss']:.4g}  "
            f"{event['rows_per_second']:,.0f} rows/s{self.fvu}"
        )
        self.handle.update({"text/plain": text}, raw=True)
