"""A Batch job of ours: its id, its key, its two containers, what its nodes are told and what its tasks look like.

A session has one for its Parallel calls, a detached submission one of its own.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from . import environment
from .bundler import Bundler
from .capacity import Bundle, Capacity
from .codec import new_key
from .errors import QuotaError, ResourceExistsError
from .labels import KEY
from .resources import Resources
from .service import JobSpec, TaskContainer, TaskSpec, Upload
from .storage import BUFFERS, session_containers, session_metadata

if TYPE_CHECKING:
    from .cluster import Cluster
    from .codec import Buffer, EncodedChunk
    from .environment import EnvironmentPlan

#: For how long a SAS may live where an identity signs it, and so the most that a job may last.
MOST_LIFE = timedelta(days=7)

#: Seconds for which a signed URL serves further bundles too, and how many are kept.
_URL_SECONDS, _MOST_URLS = 600.0, 1000
#: Seconds between two tries to create a job for which there is no room.
_FIRST_LOOK, _LAST_LOOK = 0.5, 15.0

logger = logging.getLogger(__name__)


class BatchJob:
    """A job on a cluster's pool; nothing is created by making the object.

    Parameters
    ----------
    cluster : Cluster
    id : str
        Of a form that `storage` knows, so that what it leaves behind is found.
    life : timedelta
        For which its SAS are good. A SAS must outlive every task that may use it.
    resources : Resources, optional
        Files that its calls are given.
    """

    def __init__(
        self, cluster: Cluster, id: str, *, life: timedelta = MOST_LIFE, resources: Resources | None = None
    ) -> None:
        config = cluster.config
        self.cluster, self.id, self.life = cluster, id, life
        self.resources = Resources() if resources is None else resources
        self.inputs, self.outputs = session_containers(id)
        self.key = new_key()
        self.capacity = Capacity(
            nodes=config.nodes, workers_per_node=config.node_workers, slots_per_node=config.max_tasks_per_node
        )
        image = config.container_image  # its own shared memory would be 64 MB, and loky's workers need more
        self.container = None if image is None else TaskContainer(image=image, options="--ipc=host")
        #: Signed URLs of buffers, by name, and until when they serve.
        self._urls: dict[str, tuple[str, float]] = {}
        self.plan: EnvironmentPlan
        #: Whether the service was given the job.
        self.created = False

    def __repr__(self) -> str:
        return f"<BatchJob {self.id} on {self.cluster!r}>"

    # life -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Plan what the nodes need, and have the pool; before anything of the job is created, or paid for.

        Raises
        ------
        PackagesError, ClusterError, ServiceError
        """
        config = self.cluster.config
        # A local cluster has no account yet, and nothing that needs one.
        account = self.cluster.account if config.python_packages.git else None
        self.plan = environment.plan(config, account)
        self.cluster.open()

    def create(
        self,
        *,
        lifetime: timedelta,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        marks: Mapping[str, str] | None = None,
        containers: Sequence[str] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create the containers and the job; where the account has no room for a job, wait until it has.

        Parameters
        ----------
        lifetime : timedelta
            The service ends the job after that.
        priority : int, default 0
            −1000 to 1000; jobs of a higher one come first on their pool.
        metadata : mapping of str to str, optional
            Of the job.
        marks : mapping of str to str, optional
            Further metadata of the containers.
        containers : sequence of str, optional
            Further ones of the job's own.
        cancelled : callable
            Asked between two tries; the wait for room ends where it says True.

        Raises
        ------
        QuotaError
            Where the account has no room for a job within ``node_timeout``.
        ServiceError
        """
        cluster, blobs = self.cluster, self.cluster.blobs
        mine = {**session_metadata(self.id, batch_account=cluster.batch.endpoint), **(marks or {})}
        # First what takes long and may fail: nothing of the job is there yet.
        given = self.resources.ship(blobs, self.life)
        for container in (self.inputs, self.outputs, *containers):
            blobs.create_container(container, metadata=mine)
        blobs.create_container(BUFFERS)
        files = self.plan.ship(blobs, self.inputs, self.life)
        spec = JobSpec(
            id=self.id,
            pool=cluster.config.name,
            environment={
                **self.plan.settings,
                KEY: base64.b64encode(self.key).decode(),
                "JOBLIB_AZURE_INPUTS": blobs.container_url(self.inputs, "r", self.life),
                "JOBLIB_AZURE_OUTPUTS": blobs.container_url(self.outputs, "acw", self.life),
                **self._node_settings(),
            },
            preparation=self.plan.preparation_command,
            files=files,
            given=given,
            lifetime=lifetime,
            container=self.container,
            priority=priority,
            metadata=dict(metadata or {}),
        )
        self._create(spec, cancelled)
        self.created = True

    def _create(self, spec: JobSpec, cancelled: Callable[[], bool]) -> None:
        begun, seconds, pause = time.monotonic(), self.cluster.config.node_timeout, _FIRST_LOOK
        while True:
            try:
                self.cluster.batch.create_job(spec)
                return
            except ResourceExistsError:
                # The answer to an earlier try was lost, or somebody else has a job of that id: nobody else has our key.
                if self.cluster.batch.job(self.id).environment.get(KEY) != spec.environment[KEY]:
                    raise
                return
            except QuotaError as exc:
                left = begun + seconds - time.monotonic()
                if cancelled() or left <= 0:
                    raise QuotaError(
                        f"{exc.message} Nobody's job has ended within {seconds:g} s (node_timeout): end jobs that "
                        "nobody needs (`joblib-azure job list`, or the portal), or ask for a higher quota",
                        **exc.context,
                    ) from exc
                logger.warning("%s Waiting for another job's end, for %.0f s at most", exc.message, left)
                self.cluster.step("waiting for room among the account's jobs", seconds)
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LAST_LOOK)

    def _node_settings(self) -> dict[str, str]:
        """Return what the nodes are told by the job's environment: numbers, as text."""
        config, capacity = self.cluster.config, self.capacity
        found: dict[str, int | float | None] = {"NODE_WORKERS": config.node_workers, "CACHE": config.node_cache}
        found["SERVICE_TIMEOUT"] = config.service_timeout
        found["CONTAINER"] = None if self.container is None else 1
        found["FILES"] = len(self.resources.given) or None
        if self.plan.warm:
            found["RUNNERS"] = capacity.tasks_per_node
            found["SLOT_WORKERS"] = capacity.workers_per_slot
            found["MAX_CALLS"] = config.max_calls_per_worker
        return {f"JOBLIB_AZURE_{name}": str(value) for name, value in found.items() if value is not None}

    # tasks ----------------------------------------------------------------------------------------------

    def _buffer_url(self, name: str) -> str:
        """Return where a node reads a buffer: the same for many bundles, for to sign costs as much as to store one."""
        now = time.monotonic()
        url, until = self._urls.get(name, ("", 0.0))
        if now >= until:
            if len(self._urls) >= _MOST_URLS:
                self._urls.clear()
            url = self.cluster.blobs.blob_url(BUFFERS, name, self.life)
            self._urls[name] = url, now + _URL_SECONDS
        return url

    def put_bundle(
        self,
        bundler: Bundler,
        task: str,
        encoded: Sequence[tuple[int, EncodedChunk]],
        stored: Callable[[str], bool],
        *,
        streams: int | None = None,
    ) -> dict[str, Buffer]:
        """Store a task's bundle and return the buffers that it needs besides, by their names.

        Parameters
        ----------
        bundler : Bundler
            The one that encoded the chunks.
        task : str
        encoded : sequence of (int, EncodedChunk)
        stored : callable
            Tells whether a buffer is in storage already.
        streams : int, optional
            Tasks that run at once, about; by default as many as there is room for.

        Raises
        ------
        ContentChangedError, ServiceError
        """
        blobs = self.cluster.blobs
        data, buffers = bundler.bundle(
            self.key,
            f"{self.id}/{task}",
            encoded,
            environment.client_needs(bundler.modules, self.plan.elsewhere),
            self._buffer_url,
            stored,
            streams=self.capacity.lanes if streams is None else streams,
        )
        blobs.put(self.inputs, f"bundles/{task}", data)
        return buffers

    def task_spec(
        self,
        task: str,
        bundler: Bundler,
        bundle: Bundle,
        *,
        display_name: str,
        retries: int = 0,
        timeout: timedelta | None = None,
        uploads: Sequence[Upload] = (),
    ) -> TaskSpec:
        """Return the task that runs a bundle; `retries`, `timeout` and `uploads` are the service's."""
        settings, capacity = bundler.settings, self.capacity
        threads = settings.inner_max_num_threads
        workers = capacity.workers_per_slot if bundle.slots == 1 else capacity.workers_per_node
        variables = {
            **settings.environment,
            "JOBLIB_AZURE_CALL": bundler.id,
            "JOBLIB_AZURE_WORKERS": str(workers),
            "JOBLIB_AZURE_WIDTH": str(bundle.width),
        }
        if threads is not None:
            variables["JOBLIB_AZURE_THREADS"] = str(threads)
        return TaskSpec(
            id=task,
            command=self.plan.task_command,
            environment=variables,
            required_slots=bundle.slots,
            display_name=display_name[:1024],
            container=self.container,
            retries=retries,
            timeout=timeout,
            uploads=uploads,
        )
