"""Language models on a CPU: tokenise, load, generate, look inside."""

from llmcore._core import __version__

__all__ = ["__version__"]
