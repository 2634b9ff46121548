"""`Job`: a detached job, seen from any machine that has the account's credentials."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..config import AccountConfig, ClusterConfig
from ..errors import ConflictError, JobError, JoblibAzureError, ResourceNotFoundError
from ..labels import check_format, key_of, name_of
from ..report import JobCost, Timeline
from ..report.tables import table
from ..service import BatchService, BlobService, JobDetails, NodeFile, TaskState
from ..storage import JOB_PREFIX, remove_job, session_containers
from . import names
from .counting import Counting
from .delivery import deliver, deliver_one
from .finding import borrowed, connections_of, find, remove
from .logs import STDERR, follow_log, no_file
from .names import Description, JobInfo, OnError, check_choice, info_of
from .status import JobStatus
from .stored import StoredFiles

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..cluster.connections import Connections

#: Seconds between two looks whether the service has deleted a job, and for which that is waited for.
_LOOK, _DELETION = 1.0, 600.0


class Job(StoredFiles):
    """A detached job; `submit` makes one, `attach` finds it.

    Examples
    --------
    >>> job = Job.attach("sweep-7")  # doctest: +SKIP
    >>> print(job.status())  # doctest: +SKIP
    job sweep-7: active, 231 of 500 calls done; tasks: 40 waiting, 8 running, 36 ended
    >>> for result in job.results():  # doctest: +SKIP
    ...     print(result)
    """

    def __init__(self, connections: Connections, details: JobDetails, *, owns: bool = False) -> None:
        name = name_of(details)
        if name is None:
            raise JobError(f"{details.id!r} is no job that was submitted with joblib_azure", job=details.id)
        check_format(details)
        #: The name under which it was submitted.
        self.name = name
        #: Of the Batch job.
        self.id = details.id
        self.pool = details.pool
        self._connections, self._owns = connections, owns
        self.on_error, self.keep = names.policies(details)
        self._details = details
        self.inputs, self.outputs = session_containers(self.id)
        self._call: str | None = None
        self._counting = Counting(self)

    def __repr__(self) -> str:
        return f"<Job {self.name!r} on pool {self.pool!r}>"

    @property
    def key(self) -> bytes:
        """What authenticates the job's blobs. :raises JobError: the service tells of none."""
        return key_of(self._details)

    def close(self) -> None:
        """Close what looking at it has opened; the job itself goes on."""
        self._counting.close()
        if self._owns:
            self._connections.close()

    # finding one ----------------------------------------------------------------------------------------

    @classmethod
    def attach(
        cls,
        name: str,
        cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None = None,
        account: AccountConfig | None = None,
    ) -> Job:
        """Find a job by its name.

        Parameters
        ----------
        name : str
        cluster : str, path, ClusterConfig or Cluster, optional
            One on the same account; needed where the account is written beside it, or is a local cluster's.
        account : AccountConfig, optional
            By default the cluster's, or else the environment's.

        Raises
        ------
        JobError
            Where there is none of that name, it is being deleted, or another version submitted it.
        ServiceError
        """
        connections, owns = connections_of(cluster, account)
        try:
            return cls(connections, find(connections, name), owns=owns)
        except BaseException:
            if owns:
                connections.close()
            raise

    @classmethod
    def list(
        cls,
        cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None = None,
        account: AccountConfig | None = None,
    ) -> tuple[JobInfo, ...]:
        """Return the account's jobs, the newest first; parameters as in `attach`."""
        with borrowed(cluster, account) as connections:
            found = connections.batch.job_list(JOB_PREFIX)
        # Of a script's runs the latest.
        latest = {name_of(each): each for each in sorted(found, key=lambda each: each.created)}
        jobs = [info_of(each) for name, each in latest.items() if name is not None]
        return tuple(sorted(jobs, key=lambda job: job.created, reverse=True))

    @classmethod
    def remove(
        cls,
        name: str,
        cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None = None,
        account: AccountConfig | None = None,
    ) -> None:
        """Delete whatever has that name, with all that it has computed: a detached job, or the runs of a script.

        Parameters as in `attach`.

        Raises
        ------
        JobError
            Where there is none.
        ServiceError
        """
        with borrowed(cluster, account) as connections:
            remove(connections, name)

    # looking --------------------------------------------------------------------------------------------

    @property
    def batch(self) -> BatchService:
        """The service."""
        return self._connections.batch

    @property
    def blobs(self) -> BlobService:
        """The storage account."""
        return self._connections.blobs

    @property
    def call(self) -> str:
        """Prefix of its tasks and outcomes."""
        if self._call is None:
            self._call = self.description().call
        return self._call

    def details(self) -> JobDetails:
        """Return what the service says of it. :raises JobError: it was deleted."""
        try:
            return self.batch.job(self.id)
        except ResourceNotFoundError as exc:
            raise self.gone() from exc

    def description(self) -> Description:
        """Return what its submission has said by now. :raises JobError: its blobs are gone."""
        try:
            return names.read_description(self.blobs, self.inputs, self.key, self.id)
        except JobError as exc:
            try:
                state = self.batch.job(self.id).state
            except ResourceNotFoundError:
                raise self.gone() from exc
            if state == "deleting":
                raise self.gone() from exc
            exc.advise(f"`joblib-azure job delete {self.name}` removes what is left")
            raise

    def gone(self) -> JobError:
        """Return the error for whoever finds it, or its blobs, deleted."""
        return JobError(
            f"job {self.name!r} was deleted, and its results with it: submit its calls again. `joblib-azure job list` "
            "shows the jobs that are there",
            job=self.id,
            pool=self.pool,
        )

    def status(self) -> JobStatus:
        """Return how far it has come.

        Raises
        ------
        JobError
            Where it, or its blobs, are gone.
        ServiceError
        """
        return self._counting.status()

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> JobStatus:
        """Wait until every call has an outcome, or will have none.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default as long as the job lives, which the service bounds.
        progress : bool, optional
            Whether to show how far it is; by default on a terminal and in a notebook (docs/progress.md).

        Raises
        ------
        TimeoutError
            Where it is not over by then; it goes on.
        JobError, NodesUnavailableError, ServiceError
        """
        return self._counting.wait(timeout, progress)

    # results --------------------------------------------------------------------------------------------

    def results(
        self,
        *,
        ordered: bool = True,
        on_error: OnError | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> Iterator[Any]:
        """Yield the calls' results, each once, while the job runs or after it.

        Parameters
        ----------
        ordered : bool, default True
            In the order of the calls, or in that in which they come.
        on_error : {"raise", "return", "drop"}, optional
            What becomes of calls that failed or were lost; by default as it was submitted.
        timeout : float, optional
            Seconds for which the next result may be waited for; by default as long as the job lives.
        progress : bool, optional
            Whether to show how far the job is; by default on a terminal and in a notebook (docs/progress.md).

        Raises
        ------
        TimeoutError
        Exception
            What a call raised, with the traceback on its node as its cause.
        TaskFailedError
            For calls of a task that was lost.
        JobError
            For calls that were left when the job ended; and where the job or its blobs are gone.
        NodesUnavailableError, ServiceError, IntegrityError
        """
        policy = self.on_error if on_error is None else on_error
        check_choice("on_error", policy, OnError)
        return deliver(self, ordered=ordered, policy=policy, timeout=timeout, progress=progress)

    def result(self, number: int, timeout: float | None = None) -> Any:
        """Return one call's result, or raise what it raised; errors as in `results`.

        Parameters
        ----------
        number : int
            Place of the call, from 0 on.
        timeout : float, optional
            Seconds for which it may be waited for.
        """
        return deliver_one(self, number, timeout)

    # tasks ----------------------------------------------------------------------------------------------

    def tasks(self) -> Iterator[TaskState]:
        """Yield its Batch tasks, in the order of their calls where the service lists them so."""
        return (task for task in self.batch.tasks(self.id) if names.calls_of(task.id))

    def log_command(self, task: str) -> str:
        """Return the command that shows what a task has written."""
        return f"joblib-azure job logs {self.name} {task}"

    def files(self, task: str) -> tuple[NodeFile, ...]:
        """Return the files that a task has on its node.

        Raises
        ------
        JobError
            Where it has not started, or its node is gone.
        """
        try:
            return tuple(self.batch.task_files(self.id, task))
        except (ResourceNotFoundError, ConflictError) as exc:
            raise no_file(self, task, "its files") from exc

    def file(self, task: str, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a task's file. :raises JobError: there is none, or its node is gone."""
        try:
            return self.batch.task_file(self.id, task, path, offset, length)
        except (ResourceNotFoundError, ConflictError) as exc:
            raise no_file(self, task, path) from exc

    def logs(self, task: str, *, follow: bool = False, stream: str = STDERR) -> Iterator[str]:
        """Yield what a task has written, piece by piece.

        Parameters
        ----------
        task : str
            Its id, as `tasks` has it.
        follow : bool, default False
            Whether to go on until the task ends.
        stream : str, default "stderr.txt"
            Or ``stdout.txt``.

        Raises
        ------
        JobError
            Where there is no such task, it has not started and is not followed, or its node is gone.
        ServiceError
        """
        return follow_log(self, task, stream, follow=follow)

    def timeline(self) -> Timeline:
        """Return its run as a picture and in words: what ran where, where the time went, what would make it faster.

        Its tasks are listed, a thousand a request, and their outcomes read, a request for each task, as `status` does.

        Raises
        ------
        JobError
            Where it, or its blobs, are gone.
        ServiceError, IntegrityError
        """
        from .costs import history_and_cost

        return Timeline(*history_and_cost(self))

    def cost(self) -> JobCost:
        """Return what its nodes have cost by now, as an estimate: hours by kind, and money where a price is known.

        As much is read as for `timeline`. Azure's price list is asked where neither the configuration of the submission
        nor the user's cache has a price of the last week, and waited for for five seconds at most.

        Raises
        ------
        JobError
            Where it, or its blobs, are gone.
        ServiceError, IntegrityError
        """
        from .costs import history_and_cost

        return history_and_cost(self)[1]

    def _repr_html_(self) -> str:
        try:
            return self.status()._repr_html_()
        except JoblibAzureError as exc:
            return table(f"Job {self.name}", {"pool": self.pool, "problem": exc})

    # its end --------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End the job: nothing of it runs any more; what calls have returned stays. Ended already, it is no error.

        Raises
        ------
        JobError
            Where it was deleted.
        ServiceError
        """
        self.details()
        with contextlib.suppress(ResourceNotFoundError, JobError):
            # Tasks that run look for it between two chunks; the service's own signal is what ends them.
            self.blobs.put(self.inputs, f"aborted/{self.call}", b"")
        self.batch.end_job(self.id, delete=False, reason="UserCancelled")

    def delete(self, *, wait: bool = False) -> None:
        """End the job and remove it with its results and logs; one that is gone is no error.

        Parameters
        ----------
        wait : bool, default False
            Whether to wait until the service has removed it.

        Raises
        ------
        JobError
            Where it is still there after 600 s.
        ServiceError
        """
        remove_job(self.batch, self.blobs, self.id)
        end = time.monotonic() + _DELETION
        while wait:
            try:
                state = self.batch.job(self.id).state
            except ResourceNotFoundError:
                return
            if time.monotonic() > end:
                raise JobError(f"job {self.name!r} is still {state} after {_DELETION:.0f} s", job=self.id)
            time.sleep(_LOOK)
