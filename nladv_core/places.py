"""Where things live: the project, the cache, the user's data packs. Nothing here creates or reads a file."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The folder that holds `pyproject.toml` and `book/`, found upward from this file; else the working directory.

    The second case is an installed package without its repository, where nothing but the cache and runs is placed.
    """
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file() and (folder / "book").is_dir():
            return folder
    return Path.cwd()


def cache_dir() -> Path:
    """Everything that can be computed again: `$NLADV_CACHE`, by default `<root>/data/cache`. May not exist."""
    return _from_environment("NLADV_CACHE") or project_root() / "data" / "cache"


def data_dir() -> Path | None:
    """The user's folder of data packs and published weights, `$NLADV_DATA` (format: data/README.md); None if unset."""
    return _from_environment("NLADV_DATA")


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().absolute() if value else None
