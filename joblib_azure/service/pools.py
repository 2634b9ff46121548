"""The part of `AzureBatch` that is about pools, their nodes, and the images that the service supports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from azure.batch import BatchClient, models
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

from ..errors import ResourceNotFoundError, ServiceError
from . import poolmodels
from .faults import translated, translates
from .poolspec import (
    AutoscaleRun,
    JobState,
    NodeCounts,
    NodeFile,
    NodeState,
    PoolSpec,
    PoolState,
    SupportedImage,
)

#: What azure-batch 15.1 sends, for the few requests that are made past its operations.
_API_VERSION = "2025-06-01"
#: All that a `NodeState` is made of; the rest of a node (its recent tasks above all) is the larger part.
_NODE_FIELDS = [
    "id",
    "state",
    "stateTransitionTime",
    "schedulingState",
    "isDedicated",
    "allocationTime",
    "errors",
    "startTaskInfo",
    "runningTasksCount",
]
#: The service's bound on one removal.
_MOST_REMOVED = 100
#: Seconds that an error waits for the end of a log.
_TAIL_SECONDS = 10.0


class PoolOperations:
    """Pools and nodes; `AzureBatch` has the client and the rest."""

    endpoint: str
    _client: BatchClient

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        passes: Sequence[int] = (),
    ) -> None:
        """Ask for a long operation without waiting for it.

        The SDK's ``begin_*`` methods always start a thread that asks how far it is, and that goes on for ever where
        the endpoint is gone; nobody here waits for these operations.
        """
        headers = {"Content-Type": "application/json; odata=minimalmetadata", "Accept": "application/json"}
        request = HttpRequest(method, f"{path}?api-version={_API_VERSION}", json=body, headers=headers if body else {})
        try:
            # A policy of the SDK's raises what is no success.
            self._client.send_request(request)
        except HttpResponseError as exc:
            if exc.status_code not in passes:
                raise

    def _items(self, path: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield what a listing holds, page by page, as the service writes it.

        The SDK's models take a third of a millisecond for each item, too much for what is listed by the thousand.
        """
        headers = {"Accept": "application/json"}  # as the SDK
        request = HttpRequest("GET", path, params={"api-version": _API_VERSION, **query}, headers=headers)
        while True:
            answer = self._client.send_request(request).json()
            yield from answer.get("value") or ()
            following = answer.get("odata.nextLink")
            if not following:
                return
            request = HttpRequest("GET", following, headers=headers)

    # pools ----------------------------------------------------------------------------------------------

    @translates("creating a pool")
    def create_pool(self, spec: PoolSpec) -> None:
        self._client.create_pool(poolmodels.create_options(spec))

    @translates("asking for a pool")
    def pool(self, pool: str) -> PoolState:
        return poolmodels.pool_state(self._client.get_pool(pool))

    @translates("listing pools")
    def pools(self, prefix: str = "") -> list[PoolState]:
        condition = f"startswith(id,'{prefix}')" if prefix else None
        return [poolmodels.pool_state(found) for found in self._client.list_pools(filter=condition)]

    @translates("changing a pool")
    def update_pool(self, pool: str, *, metadata: Mapping[str, str]) -> None:
        options = models.BatchPoolUpdateOptions(metadata=poolmodels.metadata(metadata))
        self._client.update_pool(pool, options)

    @translates("deleting a pool")
    def delete_pool(self, pool: str) -> None:
        # 404: it is gone; 409: it is on its way.
        self._request("DELETE", f"/pools/{quote(pool)}", passes=(404, 409))

    @translates("resizing a pool")
    def resize_pool(self, pool: str, dedicated: int, spot: int, *, deallocation: str = "taskcompletion") -> None:
        body = {
            "targetDedicatedNodes": dedicated,
            "targetLowPriorityNodes": spot,
            "nodeDeallocationOption": deallocation,
        }
        self._request("POST", f"/pools/{quote(pool)}/resize", body)

    @translates("stopping a pool's resize")
    def stop_resize(self, pool: str) -> None:
        self._request("POST", f"/pools/{quote(pool)}/stopresize")

    @translates("enabling autoscale")
    def enable_autoscale(
        self, pool: str, formula: str | None = None, interval: timedelta | None = None, *, etag: str = ""
    ) -> None:
        options = models.BatchPoolEnableAutoScaleOptions(
            auto_scale_formula=formula, auto_scale_evaluation_interval=interval
        )
        match: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
        # The service lets a pool have this once in 30 s: a caller that waits says so, and a retry policy does not.
        self._client.enable_pool_auto_scale(pool, options, retry_total=0, **match)

    @translates("disabling autoscale")
    def disable_autoscale(self, pool: str) -> None:
        self._client.disable_pool_auto_scale(pool)

    @translates("evaluating a formula")
    def evaluate_autoscale(self, pool: str, formula: str) -> AutoscaleRun:
        options = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=formula)
        run = poolmodels.autoscale_run(self._client.evaluate_pool_auto_scale(pool, options))
        if run is None:
            raise ServiceError("evaluating a formula: the service gave no answer", pool=pool)
        return run

    @translates("listing the supported images")
    def supported_images(self) -> list[SupportedImage]:
        return [poolmodels.supported_image(found) for found in self._client.list_supported_images()]

    @translates("listing a pool's jobs")
    def jobs(self, pool: str) -> list[JobState]:
        condition = f"executionInfo/poolId eq '{pool}' and state ne 'completed'"
        jobs = self._client.list_jobs(filter=condition, select=["id", "state", "creationTime"])
        return [
            JobState(id=job.id, state=poolmodels.text(job.state), pool=pool, created=job.creation_time) for job in jobs
        ]

    # nodes ----------------------------------------------------------------------------------------------

    @translates("listing nodes")
    def nodes(self, pool: str) -> list[NodeState]:
        return [poolmodels.node_state(node) for node in self._client.list_nodes(pool, select=_NODE_FIELDS)]

    @translates("counting nodes")
    def node_counts(self, pool: str) -> NodeCounts:
        for counts in self._client.list_pool_node_counts(filter=f"poolId eq '{pool}'"):
            return poolmodels.node_counts(counts)
        raise ResourceNotFoundError("counting nodes: there is no such pool", pool=pool)

    @translates("removing nodes")
    def remove_nodes(self, pool: str, nodes: Sequence[str], *, deallocation: str = "taskcompletion") -> None:
        if not 1 <= len(nodes) <= _MOST_REMOVED:
            raise ServiceError(f"removing nodes: 1 to {_MOST_REMOVED} at a time, not {len(nodes)}", pool=pool)
        body = {"nodeList": list(nodes), "nodeDeallocationOption": deallocation}
        self._request("POST", f"/pools/{quote(pool)}/removenodes", body)

    @translates("listing a node's files")
    def node_files(self, pool: str, node: str, *, recursive: bool = False) -> list[NodeFile]:
        return poolmodels.file_items(self._client.list_node_files(pool, node, recursive=recursive))

    @translates("reading a node's file")
    def node_file(self, pool: str, node: str, path: str, offset: int = 0, length: int | None = None) -> bytes:
        span = poolmodels.span(offset, length)
        return b"".join(self._client.download_node_file(pool, node, path, ocp_range=span))

    def node_file_tail(self, pool: str, node: str, path: str, size: int = 4096) -> str:
        def read() -> bytes:
            length = int(self._client.get_node_file_properties(pool, node, path).content_length)
            return self.node_file(pool, node, path, max(0, length - size)) if length else b""

        return self._tail(read)

    def _tail(self, read: Callable[[], bytes]) -> str:
        # A log is wanted while another error is told; that it cannot be had must not hide that error, nor hold it up.
        found: list[str] = []

        def fetch() -> None:
            with contextlib.suppress(ServiceError), translated("reading a file", self.endpoint):
                found.append(read().decode(errors="replace"))

        thread = threading.Thread(target=fetch, name="joblib_azure-tail", daemon=True)
        thread.start()
        thread.join(_TAIL_SECONDS)
        return found[0] if found else ""
