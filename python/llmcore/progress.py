"""Progress bars, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

__all__ = ["Report", "bars", "byte_bar"]

Report: TypeAlias = Callable[[int], None]
"""Is called with what has been done so far."""


@contextmanager
def byte_bar(title: str, total: int, progress: bool) -> Iterator[Report]:
    """A bar of `total` bytes, or a line where standard error is no terminal; yields a function of the bytes
    done so far."""
    if not progress:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title} ({total / 1e6:.0f} MB) …", file=sys.stderr, flush=True)
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
        bar.update(task, completed=total)


@contextmanager
def bars(progress: bool) -> Iterator[Callable[[str, int | None], Report | None]]:
    """Yields what adds a bar of a title and a total (None: unknown), if standard error is a terminal."""
    if progress:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda title, total: None
        return
    with Progress(console=console) as shown:

        def add(title: str, total: int | None) -> Report:
            finish()
            task = shown.add_task(title, total=total)
            return lambda done: shown.update(task, completed=done)

        def finish() -> None:
            for task in shown.tasks:
                total = task.completed if task.total is None else task.total
                shown.update(task.id, total=total, completed=total)

        yield add
        finish()
