"""An Azure Batch account on loopback: the REST API, with tasks as real processes on nodes that own cores.

It imports nothing of the rest of joblib_azure, and speaks to its clients in the service's own wire format only.

    BatchEmulator (process.py) ── starts ──► __main__ ─► server ─► app ─► handlers ─► engine
"""

from __future__ import annotations

from .process import BatchEmulator, EmulatorError

__all__ = ["BatchEmulator", "EmulatorError"]
