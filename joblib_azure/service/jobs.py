"""What jobs and their tasks are and do, as the service tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from azure.batch import BatchClient, models

from .faults import translated, translates
from .interfaces import JobDetails, TaskCounts, TaskState
from .poolmodels import failure_text, file_items, span, text
from .poolspec import NodeFile

_JOB_FIELDS = ["id", "state", "creationTime", "executionInfo", "metadata", "constraints"]
#: The service writes "without end" as some ten million days, which no date can bear.
_ENDLESS = timedelta(days=365)
_TASK_FIELDS = ["id", "state", "creationTime", "executionInfo", "nodeInfo", "displayName"]


class JobOperations:
    """Looks at jobs; `AzureBatch` makes and ends them."""

    endpoint: str
    _client: BatchClient

    @translates("asking for a job")
    def job(self, job: str) -> JobDetails:
        return _details(self._client.get_job(job))

    @translates("listing jobs")
    def job_list(self, prefix: str) -> list[JobDetails]:
        found = self._client.list_jobs(filter=f"startswith(id,'{prefix}')", select=_JOB_FIELDS)
        return [_details(job) for job in found]

    @translates("counting tasks")
    def task_counts(self, job: str) -> TaskCounts:
        counts = self._client.get_job_task_counts(job).task_counts
        return TaskCounts(
            active=counts.active, running=counts.running, succeeded=counts.succeeded, failed=counts.failed
        )

    def tasks(self, job: str) -> Iterator[TaskState]:
        with translated("listing tasks", self.endpoint):
            for task in self._client.list_tasks(job, select=_TASK_FIELDS, max_results=1000):
                yield _task(task)

    @translates("asking for a task")
    def task(self, job: str, task: str) -> TaskState:
        return _task(self._client.get_task(job, task, select=_TASK_FIELDS))

    @translates("listing a task's files")
    def task_files(self, job: str, task: str) -> list[NodeFile]:
        return file_items(self._client.list_task_files(job, task, recursive=True))

    @translates("reading a task's file")
    def task_file(self, job: str, task: str, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self._client.download_task_file(job, task, path, ocp_range=span(offset, length)))


def _details(job: models.BatchJob) -> JobDetails:
    info = job.execution_info
    failure = info.scheduling_error if info is not None else None
    lifetime = job.constraints.max_wall_clock_time if job.constraints is not None else None
    return JobDetails(
        id=str(job.id),
        pool=str(info.pool_id or "") if info is not None else "",
        state=text(job.state),
        created=job.creation_time,
        ended=info.end_time if info is not None else None,
        reason=str(info.termination_reason or "") if info is not None else "",
        metadata={item.name: item.value for item in job.metadata or ()},
        environment={item.name: item.value or "" for item in job.common_environment_settings or ()},
        failure=f"{failure.code}: {failure.message}" if failure is not None else "",
        lifetime=None if lifetime is None or lifetime >= _ENDLESS else lifetime,
    )


def _task(task: models.BatchTask) -> TaskState:
    info = task.execution_info
    failure = info.failure_info if info is not None else None
    return TaskState(
        id=str(task.id),
        state=text(task.state),
        created=task.creation_time,
        node=task.node_info.node_id if task.node_info is not None else None,
        started=info.start_time if info is not None else None,
        ended=info.end_time if info is not None else None,
        exit_code=info.exit_code if info is not None else None,
        failure=failure_text(failure, None) if failure is not None else None,
        retries=(info.retry_count or 0) if info is not None else 0,
        requeues=(info.requeue_count or 0) if info is not None else 0,
        display_name=task.display_name or "",
    )
