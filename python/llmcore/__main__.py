"""`llmcore` and `python -m llmcore`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the exit code is 0, 1 (it failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    try:
        from llmcore import __version__
    except (ImportError, ValueError) as error:  # LLMCORE_ISA, for one, is read at the first import
        print(f"llmcore: {error}", file=sys.stderr)
        sys.exit(1)
    if sys.argv[1:] in (["--version"], ["-V"]):  # at once: the rest takes 0.2 s to import
        print(f"llmcore {__version__}")
        return
    from llmcore.cli import app

    app(prog_name="llmcore")


if __name__ == "__main__":
    main()
