"""The engine: what the other modules are thin over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__version__: str

class DataError(ValueError):
    """Embeddings or labels that cannot be used."""

class UsageError(ValueError):
    """Arguments that cannot be used, alone or together."""

class ModelError(ValueError):
    """A file that is no model, or is damaged."""

class Rows:
    def __new__(
        cls, array: np.ndarray, ids: list[str] | None, groups: list[str] | None, options: list[tuple[str, str]]
    ) -> Rows: ...

class Model:
    def __new__(
        cls,
        path: Path,
        format: str | None,
        k: int | None,
        normalize: bool,
        layer: int | None,
        ignore: list[str],
    ) -> Model: ...
    own: bool
    @property
    def architecture(self) -> str: ...
    @property
    def provenance(self) -> str: ...
    def tensor(self, name: str) -> np.ndarray: ...
    def save(self, path: Path, overwrite: bool) -> None: ...
    def encode(self, rows: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...

def train(
    data: Rows | list[Path],
    out: Path | None,
    resumes: bool,
    overwrite: bool,
    options: list[tuple[str, str]],
    device: str,
    shows: bool,
    hear: Callable[..., object] | None,
) -> Path: ...
def evaluate(
    model: Path, data: Rows | list[Path], split: str, options: list[tuple[str, str]], device: str
) -> str: ...
def features(
    model: Path, data: Rows | list[Path], asked: dict[str, Any], options: list[tuple[str, str]], device: str
) -> str: ...
def report(
    run: Path,
    data: Rows | list[Path],
    asked: dict[str, Any],
    shown: int,
    out: Path | None,
    overwrite: bool,
    options: list[tuple[str, str]],
    device: str,
) -> Path: ...
def track(
    model: Path,
    data: Rows | list[Path],
    id: str,
    latents: list[int] | None,
    tokens: tuple[int, int],
    options: list[tuple[str, str]],
    device: str,
) -> str: ...
def colour(
    structure: Path,
    out: Path,
    id: str,
    values: list[float],
    chains: list[str],
    matching: str,
    overwrite: bool,
) -> str: ...
def console(args: list[str]) -> int: ...
