"""Packages that only some trainings need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["extra"]


def extra(module: str, package: str, purpose: str) -> Any:
    """A module of a package of the extra `train`.

    Raises:
        ModuleNotFoundError: it is not installed; says what for it is needed, and what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs the package {package}: pip install {package}, or 'llmcore-cpu[train]' for all "
            "that a training may need"
        ) from error
