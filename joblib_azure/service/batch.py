"""`BatchService` over the unmodified azure-batch SDK."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

from ..errors import ResourceNotFoundError, ServiceError
from .faults import CLIENT_OPTIONS, error_code, translated, translates
from .interfaces import JobSpec, NodeState, PoolSpec, PoolState, TaskEnd, TaskSpec

#: What azure-batch 15.1 sends, for the few requests that are made past its operations.
_API_VERSION = "2025-06-01"
#: Requests in parallel when more than one collection of 100 tasks is added.
_ADDERS = 4
#: A task's processes run as the pool's own user, which is no administrator: the pool is the boundary of
#: trust between its jobs (DESIGN.md, "On the node").
_USER = models.UserIdentity(
    auto_user=models.AutoUserSpecification(
        scope=models.AutoUserScope.POOL, elevation_level=models.ElevationLevel.NON_ADMIN
    )
)


class AzureBatch:
    """The Batch service behind an endpoint.

    Parameters
    ----------
    endpoint : str
        For example ``https://myaccount.westeurope.batch.azure.com``.
    account, key : str
        Name and shared key.
    """

    def __init__(self, endpoint: str, account: str, key: str) -> None:
        self.endpoint = endpoint
        self._client = BatchClient(endpoint, AzureNamedKeyCredential(account, key), **CLIENT_OPTIONS)

    def __repr__(self) -> str:
        return f"AzureBatch({self.endpoint!r})"

    def close(self) -> None:
        self._client.close()

    def _request(self, method: str, path: str, body: Mapping[str, str] | None = None) -> None:
        """Ask for a long operation without waiting for it.

        The SDK's ``begin_*`` methods always start a thread that asks how far it is, and that goes on for ever where
        the endpoint is gone; nobody here waits for these operations.
        """
        headers = {"Content-Type": "application/json; odata=minimalmetadata", "Accept": "application/json"}
        request = HttpRequest(method, f"{path}?api-version={_API_VERSION}", json=body, headers=headers if body else {})
        response = self._client.send_request(request)
        # 404: it is gone; 409: it is ending.
        if response.status_code not in (404, 409):
            response.raise_for_status()

    # pools ----------------------------------------------------------------------------------------------

    @translates("creating a pool")
    def create_pool(self, spec: PoolSpec) -> None:
        self._client.create_pool(
            models.BatchPoolCreateOptions(
                id=spec.id,
                vm_size=spec.vm_size,
                task_slots_per_node=spec.task_slots_per_node,
                target_dedicated_nodes=spec.dedicated_nodes,
                virtual_machine_configuration=models.VirtualMachineConfiguration(
                    image_reference=models.BatchVmImageReference(**spec.image),
                    node_agent_sku_id=spec.node_agent_sku,
                ),
                task_scheduling_policy=models.BatchTaskSchedulingPolicy(node_fill_type=models.BatchNodeFillType.SPREAD),
            )
        )

    @translates("asking for a pool")
    def pool(self, pool: str) -> PoolState:
        found = self._client.get_pool(pool)
        errors = [f"{error.code}: {error.message}" for error in found.resize_errors or ()]
        return PoolState(
            id=found.id,
            state=_text(found.state),
            allocation=_text(found.allocation_state),
            vm_size=found.vm_size,
            task_slots_per_node=found.task_slots_per_node or 1,
            target_nodes=(found.target_dedicated_nodes or 0) + (found.target_low_priority_nodes or 0),
            resize_errors=tuple(errors),
        )

    @translates("deleting a pool")
    def delete_pool(self, pool: str) -> None:
        self._request("DELETE", f"/pools/{pool}")

    @translates("listing nodes")
    def nodes(self, pool: str) -> list[NodeState]:
        select = ["id", "state", "errors", "startTaskInfo"]
        found = []
        for node in self._client.list_nodes(pool, select=select):
            errors = [f"{error.code}: {error.message}" for error in node.errors or ()]
            info = node.start_task_info
            if info is not None and info.failure_info is not None:
                errors.append(_failure(info.failure_info, info.exit_code))
            found.append(NodeState(id=node.id, state=_text(node.state), errors=tuple(errors)))
        return found

    def node_file_tail(self, pool: str, node: str, path: str, size: int = 4096) -> str:
        return self._tail(lambda: self._client.download_node_file(pool, node, path), size)

    # jobs -----------------------------------------------------------------------------------------------

    @translates("creating a job")
    def create_job(self, spec: JobSpec) -> None:
        self._client.create_job(
            models.BatchJobCreateOptions(
                id=spec.id,
                pool_info=models.BatchPoolInfo(pool_id=spec.pool),
                constraints=models.BatchJobConstraints(max_wall_clock_time=spec.lifetime, max_task_retry_count=0),
                common_environment_settings=_settings(spec.environment),
                job_preparation_task=models.BatchJobPreparationTask(
                    command_line=spec.preparation,
                    resource_files=[
                        models.ResourceFile(http_url=url, file_path=path) for path, url in spec.files.items()
                    ],
                    constraints=models.BatchTaskConstraints(max_task_retry_count=2),
                    wait_for_success=True,
                    user_identity=_USER,
                ),
                # "terminatejob" would end an empty job at once.
                all_tasks_complete_mode=models.BatchAllTasksCompleteMode.NO_ACTION,
            )
        )

    @translates("extending a job")
    def extend_job(self, job: str, lifetime: timedelta) -> None:
        constraints = models.BatchJobConstraints(max_wall_clock_time=lifetime, max_task_retry_count=0)
        self._client.update_job(job, models.BatchJobUpdateOptions(constraints=constraints))

    @translates("ending a job")
    def end_job(self, job: str, *, delete: bool) -> None:
        if delete:
            self._request("DELETE", f"/jobs/{job}")
        else:
            self._request("POST", f"/jobs/{job}/terminate", {"terminateReason": "EndedByClient"})

    # tasks ----------------------------------------------------------------------------------------------

    @translates("adding tasks")
    def add_tasks(self, job: str, tasks: Sequence[TaskSpec]) -> None:
        options = [
            models.BatchTaskCreateOptions(
                id=task.id,
                display_name=task.display_name or None,
                command_line=task.command,
                environment_settings=_settings(task.environment),
                required_slots=task.required_slots,
                user_identity=_USER,
            )
            # The SDK takes tasks from the end of the list, and the service runs them in the order of their arrival.
            for task in reversed(tasks)
        ]
        try:
            self._client.create_tasks(job, options, max_concurrency=_ADDERS if len(options) > 100 else None)
        except models.CreateTasksError as exc:
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
        select = ["id", "stateTransitionTime", "executionInfo", "nodeInfo"]
        found = []
        for task in self._client.list_tasks(job, filter=condition, select=select, max_results=1000):
            info = task.execution_info
            failure = info.failure_info if info is not None else None
            found.append(
                TaskEnd(
                    id=task.id,
                    ended=task.state_transition_time,
                    exit_code=info.exit_code if info is not None else None,
                    node=task.node_info.node_id if task.node_info is not None else None,
                    failure=_failure(failure, None) if failure is not None else None,
                    requeues=(info.requeue_count or 0) if info is not None else 0,
                )
            )
        return found

    @translates("terminating a task")
    def terminate_task(self, job: str, task: str) -> None:
        try:
            _unless_gone(lambda: self._client.terminate_task(job, task))
        except HttpResponseError as exc:
            if error_code(exc) != "TaskCompleted" and exc.status_code != 409:
                raise

    def task_file_tail(self, job: str, task: str, path: str, size: int = 4096) -> str:
        return self._tail(lambda: self._client.download_task_file(job, task, path), size)

    @translates("asking for the job preparation tasks")
    def preparation_failures(self, job: str) -> dict[str, str]:
        failures = {}
        for status in self._client.list_job_preparation_and_release_task_status(job):
            info = status.job_preparation_task_execution_info
            if info is not None and _text(info.state) == "completed" and _text(info.result) == "failure":
                failures[str(status.node_id)] = _failure(info.failure_info, info.exit_code)
        return failures

    def _tail(self, download: Callable[[], Any], size: int) -> str:
        # A log is wanted while another error is told; that it cannot be had must not hide that error.
        with contextlib.suppress(ServiceError), translated("reading a file", self.endpoint):
            data = b"".join(download())
            return data[-size:].decode(errors="replace")
        return ""


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


def _settings(environment: Mapping[str, str]) -> list[models.EnvironmentSetting]:
    return [models.EnvironmentSetting(name=name, value=value) for name, value in environment.items()]


def _failure(info: models.BatchTaskFailureInfo | None, exit_code: int | None) -> str:
    parts = [] if info is None else [str(info.code or ""), str(info.message or "")]
    parts += [f"{pair.name}: {pair.value}" for pair in (info.details if info is not None else None) or ()]
    text = ": ".join(part for part in parts if part) or "failed"
    return text if exit_code is None else f"{text} (exit code {exit_code})"


def _text(value: Any) -> str:
    return str(getattr(value, "value", value) or "")
