"""The command line, ``joblib-azure``. With the progress renderer it is the only part that prints."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
