"""Detached jobs: submitted from one place, watched and collected from any other.

::

    submit ─► submission: bundles of calls ─► storage, Batch ─► nodes ─► outcomes in storage
                    └─► description, sealed                                   │
    Job.attach ◄────────────┘                    delivery: each result once ◄─┘

Nothing of a job is on the client: its key is in its environment on the service, its calls and outcomes are in storage.
"""

from __future__ import annotations

from .job import Job
from .names import JobInfo
from .outputs import OutputFile
from .status import JobStatus
from .stored import StoredFile
from .submitting import submit

__all__ = ["Job", "JobInfo", "JobStatus", "OutputFile", "StoredFile", "submit"]
