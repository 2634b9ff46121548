"""The only package that imports ``azure.*``: Batch and Storage behind two narrow interfaces.

`interfaces` says what the rest of the package may ask for, `batch` and `blob` ask the real services through
their unmodified SDKs, and `faults` is the one place where their errors become ours.
"""

from __future__ import annotations

from .interfaces import (
    BatchService,
    BlobItem,
    BlobService,
    JobSpec,
    NodeState,
    PoolSpec,
    PoolState,
    TaskEnd,
    TaskSpec,
)

__all__ = [
    "BatchService",
    "BlobItem",
    "BlobService",
    "JobSpec",
    "NodeState",
    "PoolSpec",
    "PoolState",
    "TaskEnd",
    "TaskSpec",
]
