"""`submit`: checks what it is given, and decides how many calls go into a task."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from .. import labels
from ..batchjob import MOST_LIFE
from ..bundler import THRESHOLD, CallSettings
from ..cluster import Cluster
from ..config import ClusterConfig
from ..errors import ConfigurationError
from ..node.reduced import Reduced
from ..registry import resolve_cluster
from ..resources import Sources
from ..resources import read as read_resources
from .job import Job
from .names import Keep, OnError, check_choice
from .outputs import OutputFile
from .outputs import read as read_outputs
from .submission import Submission

#: Bundles that each slot has, where the number of calls is known: so many that slots end about together.
ROUNDS = 4
#: Calls of a bundle where nobody says how many: some kilobytes each are in memory until they are sent.
MOST_CALLS = 5000
#: The service takes so many retries as "without end"; 100 is beyond any use.
_MOST_RETRIES = 100


def submit(
    calls: Iterable[tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]],
    *,
    cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None = None,
    name: str | None = None,
    calls_per_task: int | None = None,
    reduce: Callable[[list[Any]], Any] | None = None,
    on_error: OnError = "raise",
    retries: int | None = None,
    timeout: float | None = None,
    task_timeout: float | None = None,
    keep: Keep = "always",
    priority: int = 0,
    resource_files: Sources | None = None,
    inputs: Sources | None = None,
    output_files: str | OutputFile | Sequence[str | OutputFile] | None = None,
    max_nbytes: int | None = THRESHOLD,
    mmap_mode: str | None = "r",
    inner_max_num_threads: int | None = None,
    progress: bool | None = None,
) -> Job:
    """Submit calls as a job that needs this client no more; return once the service holds everything.

    Parameters
    ----------
    calls : iterable
        Of ``delayed(function)(…)``. A generator is consumed as it is sent, in bounded memory.
    cluster : str, path, ClusterConfig or Cluster, optional
        As in ``parallel_config("azure", cluster=…)``. A local cluster ends with its process, and its jobs with it.
    name : str, optional
        By which `Job.attach` finds it: lower-case letters, digits and hyphens, at most 40; one job of a name at a time.
        By default one that no other job has.
    calls_per_task : int, optional
        Calls that travel together in a Batch task. By default so many that each task slot gets four tasks, or, where
        their number is not known (a generator), more and more as they come.
    reduce : callable, optional
        Is called on the node with the list of the results of a task's calls, in their order, and what it returns is
        the one result of the task: ``sum``, or whatever makes less of them. The job has as many results as tasks. A
        call that fails fails its whole task; the Parallel calls inside a call have one core. The arguments of a task's
        calls are in this client's memory at once.
    on_error : {"raise", "return", "drop"}, default "raise"
        What results of calls that fail are to whoever collects them, unless he says otherwise: raised, returned as
        exceptions in their place, or left out. The other calls run in any case.
    retries : int, optional
        How often the service runs a task again that was lost to the infrastructure; by default the cluster's
        ``retries``. Calls of such a task may run more than once, and the first outcome counts.
    timeout : float, optional
        Seconds after which the service ends the job, whatever is left; at most, and by default, 7 days, for which its
        nodes may use the storage.
    task_timeout : float, optional
        Seconds after which the service ends a task; it counts as lost.
    keep : {"always", "on_error", "never"}, default "always"
        Whether the job and its results stay once all results were collected: always; where a call has failed; never.
        `Job.delete` removes them, and what nobody deletes goes after the cluster's ``keepDays``.
    priority : int, default 0
        −1000 to 1000: tasks of jobs of a higher one come first on the pool.
    resource_files : path, URL, sequence of these or mapping of str to these, optional
        Files and folders of this machine, and URLs, that the calls find in the folder in which they run: each under its
        name, or under the path that a mapping gives it. They are read-only: the tasks of a node share them.
    inputs : str, sequence of str or mapping of str to str, optional
        ``"container"`` or ``"container/prefix"``: blobs of the storage account that they find there, under their names
        in the container, below the path that a mapping gives them. A blob's whole name is that blob alone.
    output_files : str, OutputFile or sequence of these, optional
        Patterns of files in that folder that are stored when their task is over: `Job.output_files` lists and
        `Job.download` has them.
    max_nbytes, mmap_mode, inner_max_num_threads
        As `joblib.Parallel` has them.
    progress : bool, optional
        Whether to show how many calls were sent; by default on a terminal and in a notebook (docs/progress.md).

    Returns
    -------
    Job

    Raises
    ------
    ConfigurationError
        Where a setting is wrong, there are no calls, or what they are to be given is not there; nothing was created.
    ResourceExistsError
        Where a job of that name is there.
    ClusterError, ServiceError, TaskPicklingError, ContentChangedError
        Nothing is left of the job then; nor where the generator of the calls raises.

    Examples
    --------
    >>> from joblib import delayed
    >>> from joblib_azure import Job, submit
    >>> calls = (delayed(pow)(i, 2) for i in range(1000))
    >>> job = submit(calls, cluster="cluster.json", name="squares")  # doctest: +SKIP
    >>> list(Job.attach("squares").results())  # doctest: +SKIP
    """
    name = new_or(name)
    if reduce is not None and not callable(reduce):
        raise ConfigurationError(
            f"reduce={reduce!r} cannot be called; it takes the list of the results of a task's calls"
        )
    check_choice("on_error", on_error, OnError)
    check_choice("keep", keep, Keep)
    for setting, value, least, most in (
        ("calls_per_task", calls_per_task, 1, None),
        ("retries", retries, 0, _MOST_RETRIES),
        ("timeout", timeout, 60.0, MOST_LIFE.total_seconds()),
        ("task_timeout", task_timeout, 1.0, None),
        ("priority", priority, -1000, 1000),
    ):
        _check(setting, value, least, most)
    outputs = read_outputs(output_files, name)
    if keep == "never" and any(each.container is None for each in outputs):
        raise ConfigurationError(
            "keep='never' removes the job once its results were collected, and the files that its calls leave with it: "
            "name a container of your own, OutputFile(…, container=…), or keep the job"
        )
    resources = read_resources(resource_files, inputs)
    total = len(calls) if isinstance(calls, Sequence) else None
    iterator = iter(calls)
    # Before anything is created: a generator that fails at once, or has nothing, costs nothing.
    try:
        first = next(iterator)
    except StopIteration:
        raise ConfigurationError("calls: there is none; a job needs one at least") from None
    found = resolve_cluster(cluster)
    life = MOST_LIFE if timeout is None else timedelta(seconds=timeout)
    settings = CallSettings(
        n_jobs=max(2, found.config.workers),
        max_nbytes=max_nbytes,
        mmap_mode=mmap_mode,
        inner_max_num_threads=inner_max_num_threads,
        path=(),
    )
    sizes = _sizes(calls_per_task, total, found)
    sent = _chained(first, iterator)
    if reduce is not None:
        sent = _groups(sent, reduce, sizes)
        total, sizes = None if total is None else -(-total // sizes(0)), lambda sent: 1
    submission = Submission(
        found,
        name,
        settings,
        sizes=sizes,
        total=total,
        retries=found.config.retries if retries is None else retries,
        task_timeout=None if task_timeout is None else timedelta(seconds=task_timeout),
        progress=progress,
        resources=resources,
        outputs=outputs,
    )
    return submission.run(sent, life, priority, on_error, keep)


def new_or(name: str | None) -> str:
    """Return the name that was given, if it is one, or a new one."""
    return labels.new_name() if name is None else labels.check_name(name)


def _check(setting: str, value: float | None, least: float, most: float | None) -> None:
    if value is not None and (not value >= least or (most is not None and value > most)):
        bounds = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
        raise ConfigurationError(f"{setting}={value!r} is out of bounds: {bounds}")


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _groups(calls: Iterator[Any], reduce: Callable[[list[Any]], Any], sizes: Callable[[int], int]) -> Iterator[Any]:
    """Yield a call for each of the groups whose results become one."""
    sent = 0
    while group := list(itertools.islice(calls, sizes(sent))):
        yield Reduced(reduce, group), (), {}
        sent += len(group)


def _sizes(calls_per_task: int | None, total: int | None, cluster: Cluster) -> Callable[[int], int]:
    """Return what tells how many calls the next bundle has, by how many were sent before it."""
    if calls_per_task is not None:
        return lambda sent: calls_per_task
    config = cluster.config
    slots = config.nodes * config.max_tasks_per_node
    if total is not None:
        # As many workers as a slot has are kept busy by one bundle.
        width = max(1, config.node_workers // config.max_tasks_per_node)
        size = min(MOST_CALLS, max(min(width, -(-total // slots)), -(-total // (ROUNDS * slots))))
        return lambda sent: size
    # As many calls as were sent make up ROUNDS bundles for each slot: a million in some thousands.
    return lambda sent: min(MOST_CALLS, 1 + sent // (ROUNDS * slots))
