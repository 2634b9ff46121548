"""The backend of a `joblib.Parallel` inside a call: as many workers as the call has cores, never more.

A chunk that starts gets the cores of its task divided by the chunks that run beside it (DESIGN.md,
decision 2). `NestedBackend` caps the nested Parallel's ``n_jobs`` with that number, then steps aside for
joblib's own loky backend, or for threads where the code prefers them.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from joblib.parallel import BACKENDS, FallbackToBackend, ParallelBackendBase, SequentialBackend

from .limits import chunk_cores


class NestedBackend(ParallelBackendBase):  # type: ignore[misc]
    """joblib backend for the Parallel calls inside a call on a node.

    Parameters
    ----------
    nesting_level : int, default 1
        1 for a Parallel directly inside a call.
    inner_max_num_threads : int, optional
        As for loky: threads that BLAS and OpenMP may use in the nested workers.
    **ignored
        Parameters of the ``azure`` backend (``cluster=…``), which mean nothing on a node.
    """

    supports_inner_max_num_threads = True
    supports_retrieve_callback = True  # so that generators and timeouts pass Parallel's checks

    def __init__(self, nesting_level: int | None = 1, inner_max_num_threads: int | None = None, **ignored: Any) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)

    def __reduce__(self) -> tuple[Any, ...]:
        return NestedBackend, (self.nesting_level, self.inner_max_num_threads)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return `n_jobs` within the cores that the call has."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        cores = chunk_cores()
        if n_jobs < 0:
            return max(1, cores + 1 + n_jobs)
        return min(n_jobs, cores)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **kwargs: Any,
    ) -> int:
        """Cap the Parallel's ``n_jobs`` and hand it on to sequential, threading or loky."""
        capped = self.effective_n_jobs(n_jobs)
        level = self.nesting_level
        if capped == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=level))
        # The backend that takes over reads n_jobs from the Parallel again.
        parallel.n_jobs = capped
        if prefer == "threads" or require == "sharedmem":
            raise FallbackToBackend(BACKENDS["threading"](nesting_level=level))
        loky = BACKENDS["loky"]
        threads = self.inner_max_num_threads
        raise FallbackToBackend(loky(nesting_level=level, inner_max_num_threads=threads, initializer=line_buffered))


def line_buffered() -> None:
    """Let each line that calls print leave this process by itself.

    A task's output is read as it comes, and the workers of a nested pool are ended before they would flush.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a call put something else there
            if not stream.line_buffering:
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def close_nested_pool() -> None:
    """Shut the loky pool that a nested Parallel may have left in this process.

    A nested pool ends with its chunk: the next chunk's share of the cores may be another, and an open loky
    pool can keep a process from exiting.
    """
    from joblib.externals.loky import reusable_executor

    # There is no public way to ask for the executor without creating one.
    executor = getattr(reusable_executor, "_executor", None)
    if executor is not None:
        executor.shutdown(wait=True, kill_workers=True)
