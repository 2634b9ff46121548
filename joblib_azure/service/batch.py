"""`BatchService` over the unmodified azure-batch SDK."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from azure.batch import BatchClient, models
from azure.core.exceptions import AzureError, HttpResponseError

from ..capacity import COLLECTION
from ..errors import ResourceNotFoundError, ServiceError
from .faults import error_code, translated, translates
from .interfaces import JobSpec, TaskEnd, TaskSpec, Upload
from .jobs import JobOperations
from .poolmodels import failure_text, resource_file, settings, text
from .pools import PoolOperations
from .poolspec import TaskContainer

#: Requests in parallel when more than one collection of tasks is added.
_ADDERS = 4
#: A task's processes run as the pool's own user, which is no administrator: the pool is the boundary of
#: trust between its jobs (DESIGN.md, "On the node").
_USER = models.UserIdentity(
    auto_user=models.AutoUserSpecification(
        scope=models.AutoUserScope.POOL, elevation_level=models.ElevationLevel.NON_ADMIN
    )
)


class AzureBatch(JobOperations, PoolOperations):
    """The Batch service behind an endpoint.

    Parameters
    ----------
    client : BatchClient
        With credentials, as `credentials.connect_batch` makes it.
    endpoint : str
        For example ``https://myaccount.westeurope.batch.azure.com``.
    """

    def __init__(self, client: BatchClient, endpoint: str) -> None:
        self.endpoint = endpoint
        self._client = client

    def __repr__(self) -> str:
        return f"AzureBatch({self.endpoint!r})"

    def close(self) -> None:
        self._client.close()

    # jobs -----------------------------------------------------------------------------------------------

    @translates("creating a job")
    def create_job(self, spec: JobSpec) -> None:
        self._client.create_job(
            models.BatchJobCreateOptions(
                id=spec.id,
                pool_info=models.BatchPoolInfo(pool_id=spec.pool),
                constraints=models.BatchJobConstraints(max_wall_clock_time=spec.lifetime, max_task_retry_count=0),
                common_environment_settings=settings(spec.environment),
                job_preparation_task=models.BatchJobPreparationTask(
                    command_line=spec.preparation,
                    resource_files=[
                        *(models.ResourceFile(http_url=url, file_path=path) for path, url in spec.files.items()),
                        *map(resource_file, spec.given),
                    ],
                    constraints=models.BatchTaskConstraints(max_task_retry_count=2),
                    wait_for_success=True,
                    user_identity=_USER,
                    container_settings=_container(spec.container),
                ),
                priority=spec.priority,
                metadata=[models.BatchMetadataItem(name=name, value=value) for name, value in spec.metadata.items()],
                # "terminatejob" would end an empty job at once.
                all_tasks_complete_mode=models.BatchAllTasksCompleteMode.NO_ACTION,
            )
        )

    @translates("ending a job with its tasks")
    def end_with_tasks(self, job: str) -> None:
        mode = models.BatchAllTasksCompleteMode.TERMINATE_JOB
        self._client.update_job(job, models.BatchJobUpdateOptions(all_tasks_complete_mode=mode))

    @translates("extending a job")
    def extend_job(self, job: str, lifetime: timedelta) -> None:
        constraints = models.BatchJobConstraints(max_wall_clock_time=lifetime, max_task_retry_count=0)
        self._client.update_job(job, models.BatchJobUpdateOptions(constraints=constraints))

    @translates("listing the jobs that run")
    def running_jobs(self, prefix: str) -> set[str]:
        condition = f"startswith(id,'{prefix}') and state ne 'completed'"
        return {str(job.id) for job in self._client.list_jobs(filter=condition, select=["id"])}

    @translates("ending a job")
    def end_job(self, job: str, *, delete: bool, reason: str = "EndedByClient") -> None:
        if delete:
            self._request("DELETE", f"/jobs/{quote(job)}", passes=(404, 409))
        else:
            # 404: it is gone; 409: it is ending.
            said = {"terminateReason": reason}
            self._request("POST", f"/jobs/{quote(job)}/terminate", said, passes=(404, 409))

    # tasks ----------------------------------------------------------------------------------------------

    @translates("adding tasks")
    def add_tasks(self, job: str, tasks: Sequence[TaskSpec]) -> None:
        # As models they cost a twentieth of all that one client of a large pool does, and are alike for most tasks.
        alike: dict[object, tuple[list[models.EnvironmentSetting], models.BatchTaskConstraints]] = {}
        options = []
        # The SDK takes tasks from the end of the list, and the service runs them in the order of their arrival.
        for task in reversed(tasks):
            key = tuple(task.environment.items()), task.retries, task.timeout
            if key not in alike:
                limits = models.BatchTaskConstraints(
                    max_task_retry_count=task.retries, max_wall_clock_time=task.timeout
                )
                alike[key] = settings(task.environment), limits
            environment, constraints = alike[key]
            options.append(
                models.BatchTaskCreateOptions(
                    id=task.id,
                    display_name=task.display_name or None,
                    command_line=task.command,
                    environment_settings=environment,
                    required_slots=task.required_slots,
                    user_identity=_USER,
                    container_settings=_container(task.container),
                    output_files=[_upload(each) for each in task.uploads] or None,
                    constraints=constraints,
                )
            )
        try:
            self._client.create_tasks(job, options, max_concurrency=_ADDERS if len(options) > COLLECTION else None)
        except models.CreateTasksError as exc:
            for error in exc.errors or ():
                if isinstance(error, AzureError):  # of a whole request; what it says is told like any other
                    raise error from None
            reasons = {
                f"{result.error.code}: {result.error.message.value}" if result.error else "no reason given"
                for result in exc.failure_tasks or ()
            }
            reasons.update(str(error) for error in exc.errors or ())
            raise ServiceError(f"adding tasks: {'; '.join(sorted(reasons))}", job=job) from exc

    @translates("listing ended tasks")
    def ended_tasks(self, job: str, since: datetime | None) -> list[TaskEnd]:
        condition = "state eq 'completed'"
        if since is not None:
            moment = since.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            condition += f" and stateTransitionTime ge DateTime'{moment}'"
        select = "id,stateTransitionTime,executionInfo,nodeInfo"
        asked = {"$filter": condition, "$select": select, "maxresults": "1000"}
        return [_task_end(task) for task in self._items(f"/jobs/{quote(job)}/tasks", asked)]

    @translates("terminating a task")
    def terminate_task(self, job: str, task: str) -> None:
        try:
            _unless_gone(lambda: self._client.terminate_task(job, task))
        except HttpResponseError as exc:
            if error_code(exc) != "TaskCompleted" and exc.status_code != 409:
                raise

    def task_file_tail(self, job: str, task: str, path: str, size: int = 4096) -> str:
        def read() -> bytes:
            length = int(self._client.get_task_file_properties(job, task, path).content_length)
            span = f"bytes={max(0, length - size)}-"
            return b"".join(self._client.download_task_file(job, task, path, ocp_range=span)) if length else b""

        return self._tail(read)

    @translates("asking for the job preparation tasks")
    def preparation_failures(self, job: str) -> dict[str, str]:
        failures = {}
        for status in self._client.list_job_preparation_and_release_task_status(job):
            info = status.job_preparation_task_execution_info
            if info is not None and text(info.state) == "completed" and text(info.result) == "failure":
                failures[str(status.node_id)] = failure_text(info.failure_info, info.exit_code)
        return failures


def _task_end(task: Mapping[str, Any]) -> TaskEnd:
    """Return what a listing says of a completed task."""
    info, node = task.get("executionInfo") or {}, task.get("nodeInfo") or {}
    failure = info.get("failureInfo")
    whole, _, fraction = str(task["stateTransitionTime"]).rstrip("Z").partition(".")
    ended = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc)
    return TaskEnd(
        id=str(task["id"]),
        ended=ended + timedelta(microseconds=int(f"{fraction:0<6.6}")),
        exit_code=info.get("exitCode"),
        node=node.get("nodeId"),
        failure=None if failure is None else failure_text(models.BatchTaskFailureInfo(failure), None),
        requeues=info.get("requeueCount") or 0,
    )


def _unless_gone(action: Callable[[], Any]) -> None:
    try:
        with translated("", ""):
            action()
    except ResourceNotFoundError:
        pass
    except ServiceError as exc:
        if exc.context.get("status") == 409:
            return  # it is ending already
        if isinstance(exc.__cause__, HttpResponseError):
            raise exc.__cause__ from None
        raise


def _upload(spec: Upload) -> models.OutputFile:
    to = models.OutputFileBlobContainerDestination(container_url=spec.url, path=spec.path)
    return models.OutputFile(
        file_pattern=spec.pattern,
        destination=models.OutputFileDestination(container=to),
        upload_options=models.OutputFileUploadConfiguration(upload_condition=models.OutputFileUploadCondition(spec.on)),
    )


def _container(spec: TaskContainer | None) -> models.BatchTaskContainerSettings | None:
    if spec is None:
        return None
    return models.BatchTaskContainerSettings(
        image_name=spec.image,
        container_run_options=spec.options or None,
        # The task's own folder, as for a task outside of a container, and not the one that the image names.
        working_directory=models.ContainerWorkingDirectory.TASK_WORKING_DIRECTORY,
    )
