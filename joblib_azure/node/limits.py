"""How many cores a task, a chunk and a library may use, as environment variables of the runner.

The task sets them before the runner begins, so that every process below it inherits them: the loky workers,
those of nested pools and the user's own. A library that was loaded already is limited by threadpoolctl in
`chunk`.
"""

from __future__ import annotations

import os

#: loky's own variable: what ``cpu_count()`` and so ``n_jobs=-1`` mean in the runner and below.
WORKERS_VARIABLE = "LOKY_MAX_CPU_COUNT"
#: Cores that one running chunk has.
CORES_VARIABLE = "JOBLIB_AZURE_CHUNK_CORES"
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: As joblib's ``ParallelBackendBase.MAX_NUM_THREADS_VARS``, which cannot be imported here: the task's own
#: process does without joblib to start sooner.
THREAD_VARIABLES = ("OMP_NUM_THREADS", *_BLAS_VARIABLES, "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def runner_variables(workers: int, width: int, threads: int | None) -> dict[str, str]:
    """Return the variables for a runner.

    Parameters
    ----------
    workers : int
        Cores of the task's slots.
    width : int
        Chunks that run at once.
    threads : int or None
        ``inner_max_num_threads``; by default a chunk's libraries use the cores that the chunk has.
    """
    cores = max(1, workers // width)
    variables = {WORKERS_VARIABLE: str(workers), CORES_VARIABLE: str(cores), "JOBLIB_AZURE_NODE": "1"}
    # A user who set such a variable for the job keeps it, as with loky at home.
    unset = [name for name in THREAD_VARIABLES if threads is not None or name not in os.environ]
    return {**variables, **dict.fromkeys(unset, str(threads or cores))}


def library_threads(threads: int | None) -> dict[str, int]:
    """Return how many threads a call's libraries may use, as `threadpoolctl.threadpool_limits` takes it.

    Parameters
    ----------
    threads : int or None
        ``inner_max_num_threads``; by default what the variables say, a user's own or those of the runner.
    """

    def said(*names: str) -> int:
        counts = [int(text) for name in names if (text := os.environ.get(name, "")).isdecimal()]
        return threads or max(counts, default=0) or chunk_cores()

    return {"openmp": said("OMP_NUM_THREADS"), "blas": said(*_BLAS_VARIABLES)}


def chunk_cores() -> int:
    """Return the number of cores that the chunk running in this process has, at least 1."""
    return max(1, int(os.environ.get(CORES_VARIABLE, "1")))
