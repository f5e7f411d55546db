"""Rows as the engine takes them: files by their paths, or an array with ids and groups."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np

from ._engine import Rows, UsageError

class SupportsArray(Protocol):
    """What NumPy makes an array of: a frame of pandas, a tensor of PyTorch on the CPU."""

    def __array__(self) -> np.ndarray: ...


#: One file, folder or pattern.
PathLike: TypeAlias = "str | os.PathLike[str]"
#: Several of them, or rows: an array (N, D) of float16, float32 or float64, or a frame of pandas with one row per row.
Data: TypeAlias = "PathLike | Sequence[PathLike] | np.ndarray | SupportsArray"
#: One text per row: a list, an array, or a column of pandas.
Texts: TypeAlias = "Iterable[Any]"


#: Options that say how files are read.
_OF_FILES = ("dataset", "index", "transpose", "stored_as", "group_by", "memory")


class Folder:
    """A temporary folder that goes with the last reference to this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="topk-sae-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def warn(text: str) -> None:
    """A warning at the line that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


def option_text(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def option_texts(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options that are not None."""
    return [(name, option_text(value)) for name, value in options.items() if value is not None]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _texts(texts: Texts) -> list[str]:
    return [_text(text) for text in texts]


def is_path(data: Any) -> TypeGuard[PathLike]:
    """Whether it names a file."""
    return isinstance(data, (str, os.PathLike))


def folder_of(run: Any) -> Path:
    """The folder of a run, or the one that is named."""
    return Path(getattr(run, "path", run))


def paths_of(data: Any) -> list[Path] | None:
    """The files that `data` names; None if it is no path and no list of them."""
    if is_path(data):
        return [Path(data)]
    if isinstance(data, (list, tuple)) and data and all(map(is_path, data)):
        return [Path(path) for path in data]
    return None


def _is_frame(data: Any) -> bool:
    return hasattr(data, "to_numpy") and hasattr(data, "columns") and hasattr(data, "index")


def engine_data(
    data: Data, ids: str | Texts | None, groups: PathLike | Texts | None, options: dict[str, Any]
) -> Rows | list[Path]:
    """Files or rows as the engine takes them. What is an option of files goes into `options`."""
    paths = paths_of(data)
    if paths is not None:
        for name, value in (("ids", ids), ("groups", groups)):
            if value is None:
                continue
            if not is_path(value):
                raise UsageError(
                    f"{name} of files are in the files, or in one that is named: give {name} as a text, "
                    "or the rows as an array"
                )
            options[name] = value
        return paths
    if is_path(ids):
        raise UsageError("an array has one id for each row: give them as a list, an array or a column")
    if is_path(groups):
        options["groups"] = groups
        groups = None
    array: Any = data
    if _is_frame(array):
        if ids is None and type(array.index).__name__ != "RangeIndex":
            ids = array.index
        # Frames mostly have columns one after another.
        array = np.ascontiguousarray(array.to_numpy())
    if hasattr(array, "toarray"):
        raise UsageError("the rows are a sparse matrix; give them dense: x.toarray()")
    rows = np.asarray(array)
    mine = {"skip_bad_rows": options.pop("skip_bad_rows", None)}
    reading = [name for name in _OF_FILES if options.get(name) is not None]
    if reading:
        raise UsageError(f"{reading[0]} says how files are read, and the rows are an array; leave it out")
    return Rows(
        rows,
        None if ids is None else _texts(ids),
        None if groups is None else _texts(groups),  # type: ignore[arg-type]
        option_texts(mine),
    )
