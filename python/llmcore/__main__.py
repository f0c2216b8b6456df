"""`llmcore` and `python -m llmcore`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the exit code is 0, 1 (it failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    if sys.argv[1:] in (["--version"], ["-V"]):  # at once: the rest takes 0.2 s to import
        from llmcore import __version__

        print(f"llmcore {__version__}")
        return
    from llmcore.cli import app

    app(prog_name="llmcore")


if __name__ == "__main__":
    main()
