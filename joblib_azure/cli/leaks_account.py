"""What nobody uses any more on an account: jobs without their client, floors and pools without jobs, blobs of both.

A thing is used as long as somebody may want it::

    job of a session   its client lives here; or it has pushed the job's lease on within half of that
    a script's job     the same; what it has computed is kept until its date in any case
    detached job       its submission is complete, or says that it lives; when it is over, until its results' date
    pool               a job on it is used, whoever's it is; a node does something; or it scales by its own formula
    blobs              as `storage gc` sees it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import partial

from .. import labels, storage
from ..cluster.floor import Floor, floor_of, without_floor
from ..cluster.spec import RECORD, recorded_size
from ..errors import IntegrityError, JobError, ResourceNotFoundError, ServiceError
from ..jobs.names import read_description
from ..service import BatchService, BlobService, JobDetails, NodeState, PoolState
from ..storage import Stored, session_containers
from .common import count
from .leaks import Findings, Leak, Spared
from .leftovers import MARK

#: For which a submission may say nothing: it says that it lives every 5 s, and a laptop may sleep.
SILENCE = timedelta(minutes=15)
#: For which a doctor may have its pool before its job is there, and a job that is over may be on its way out.
GRACE = timedelta(minutes=15)
#: For which a job that has failed is kept for its logs, and the cache without use; as for `storage gc`.
KEPT = timedelta(days=7)
#: States of nodes that do nothing, and cost as much as if they did.
_IDLE = frozenset({"idle", "starttaskfailed", "unusable", "offline"})
_OVER = frozenset({"completed", "terminating", "deleting"})


def examine(batch: BatchService, blobs: BlobService, found: Findings, *, idle: timedelta) -> None:
    """Add what is found on an account.

    Parameters
    ----------
    batch : BatchService
    blobs : BlobService
    found : Findings
    idle : timedelta
        For which the nodes of a pool that does not scale must have had nothing to do.

    Raises
    ------
    ServiceError
    """
    _Survey(batch, blobs, found, idle).run()


@dataclass
class _Survey:
    batch: BatchService
    blobs: BlobService
    found: Findings
    idle: timedelta
    now: datetime = field(default_factory=lambda: _now())

    def run(self) -> None:
        stored = storage.collect(self.blobs, self.batch, age=KEPT, dry_run=True)
        containers: dict[str, list[Stored]] = {}
        for each in (*stored.removed, *stored.left):
            if each.job:
                containers.setdefault(each.job, []).append(each)
        jobs = self.batch.job_list(storage.PREFIX)
        pools = {pool.id.lower(): pool for pool in self.batch.pools()}
        dead = []
        for job in sorted(jobs, key=lambda each: each.created):
            if job.state == "deleting" or not (storage.is_session(job.id) or labels.name_of(job) is not None):
                continue
            look = self._over if job.state == "completed" else self._live
            leak = look(job, containers.get(job.id, []))
            if leak is not None:
                dead.append(job)
                self.found.leaks.append(leak)
            elif job.state not in _OVER and job.pool.lower() not in pools:
                self._spare("job", _title(job), f"waits for the pool {job.pool}, which is not there")
        for pool in pools.values():
            if pool.state == "active" and (RECORD in pool.spec.metadata or MARK in pool.spec.metadata):
                mine = [job for job in dead if job.pool.lower() == pool.id.lower() and job.state not in _OVER]
                self._pool(pool, mine)
        self._blobs([each for each in stored.removed if each.job not in {job.id for job in dead}])

    def _spare(self, kind: str, name: str, why: str, nodes: int = 0) -> None:
        self.found.spared.append(Spared(kind=kind, name=name, why=why, nodes=nodes))

    # jobs -----------------------------------------------------------------------------------------------

    def _live(self, job: JobDetails, containers: Sequence[Stored]) -> Leak | None:
        """A job that is not over."""
        if job.state == "terminating":
            return None
        if not storage.is_session(job.id) and labels.kind_of(job) == "detached":
            return self._submission(job)
        client = labels.client_of(job)
        if client is None or job.lifetime is None:
            end = "" if job.lifetime is None else f"; it ends by {_moment(job.created + job.lifetime)}"
            self._spare("job", _title(job), f"does not say whose it is, as of another version{end}")
            return None
        # Whoever lives pushes the end on in each third of the lease.
        heard = job.created + job.lifetime - client.lease
        if client.lives or (client.lives is None and self.now - heard <= client.lease / 2):
            return None
        gone = f"its client, {client}, " + (
            "has not been heard of" if client.lives is None else "is gone, and was last heard of"
        )
        why = f"{gone} for {_span(self.now - heard)}; it would end by {_moment(job.created + job.lifetime)}"
        remove: Callable[[], object] = partial(storage.remove_job, self.batch, self.blobs, job.id)
        removal = "delete the job with its blobs"
        if not storage.is_session(job.id):
            remove = partial(self.batch.end_job, job.id, delete=False, reason="ClientGone")
            removal = "end the job; what it has computed stays for the script's next run"
        return self._leak(job, why, heard, removal, partial(self._unless_heard, job, remove))

    def _leak(
        self, job: JobDetails, why: str, since: datetime | None, removal: str, remove: Callable[[], object]
    ) -> Leak:
        return Leak(kind="job", name=_title(job), why=why, since=since, removal=removal, remove=remove)

    def _unless_heard(self, job: JobDetails, remove: Callable[[], object]) -> None:
        try:
            now = self.batch.job(job.id)
        except ResourceNotFoundError:
            return
        if now.lifetime != job.lifetime:
            raise JobError("its client lives: it has just been heard of", job=job.id)
        remove()

    def _submission(self, job: JobDetails) -> Leak | None:
        """A detached job that is not over: whoever submits it says that he lives, until all of it is there."""
        inputs = session_containers(job.id)[0]
        try:
            item = self.blobs.stat(inputs, "description")
            complete = False
            if item is not None:
                complete = read_description(self.blobs, inputs, labels.key_of(self.batch.job(job.id)), job.id).complete
        except ResourceNotFoundError:
            item, complete = None, False
        except (JobError, IntegrityError, TypeError):
            self._spare("job", _title(job), "what it says of itself cannot be read, as of another version")
            return None
        if complete:
            return None
        heard = job.created if item is None else item.modified
        if self.now - heard < SILENCE:
            return None
        remove = partial(self.batch.end_job, job.id, delete=False, reason="SubmissionGone")
        why = f"its submission was broken off, and not heard of for {_span(self.now - heard)}"
        if item is None:
            why = "its blobs are gone, and nothing of it can be had"
        return self._leak(job, why, heard, "end the job; the results of what was submitted stay", remove)

    def _over(self, job: JobDetails, containers: Sequence[Stored]) -> Leak | None:
        """A job that has ended: it costs nothing, and may have results."""
        ended = job.ended or job.created
        if any(not each.left_over for each in containers) or self.now - ended < GRACE:
            return None
        if storage.is_session(job.id):
            if self.now - ended < KEPT:
                return None
            why = f"failed, and was kept for {_span(KEPT)} for its logs"
        elif containers:
            why = "is over, and its results' date too"
        else:
            why = "is over, and its results are not there any more"
        remove = partial(storage.remove_job, self.batch, self.blobs, job.id)
        leak = self._leak(job, why, ended, "delete the job with its blobs", remove)
        return replace(leak, bytes=sum(each.bytes for each in containers))

    # pools ----------------------------------------------------------------------------------------------

    def _pool(self, pool: PoolState, dead: Sequence[JobDetails]) -> None:
        known = {job.id for job in dead}
        jobs = [job for job in self.batch.jobs(pool.id) if job.state not in _OVER]
        if any(job.id not in known for job in jobs):
            return
        nodes = self.batch.nodes(pool.id) if pool.current_nodes else []
        if MARK in pool.spec.metadata:
            if self.now - (pool.created or self.now) > GRACE:
                why = "a doctor that was stopped has made it for its task"
                self._delete(pool, why, pool.created, len(nodes))
            return
        if pool.autoscale is not None:
            self._scaling(pool, pool.autoscale.formula, nodes, dead)
            return
        if not nodes and not pool.target_nodes:
            return
        since = _idle_since(nodes)
        if since is None or dead:
            # With the jobs of dead clients ended it has nothing to do from then on.
            if dead:
                self._spare("pool", pool.id, "does not scale: its nodes stay once its jobs are gone", len(nodes))
            return
        why = f"does not scale, and {count(len(nodes), 'node')} had nothing to do for {_span(self.now - since)}"
        if self.now - since < self.idle:
            self._spare("pool", pool.id, f"{why}, of {_span(self.idle)} (--idle)", len(nodes))
            return
        self._delete(pool, why, since, len(nodes))

    def _delete(self, pool: PoolState, why: str, since: datetime | None, nodes: int) -> None:
        removal = "delete the pool; the next session with its cluster.json makes it again"
        if MARK in pool.spec.metadata:
            removal = "delete the pool, with its jobs"
        remove = partial(self._remove_pool, pool)
        self.found.leaks.append(
            Leak(kind="pool", name=pool.id, why=why, since=since, removal=removal, nodes=nodes, remove=remove)
        )

    def _remove_pool(self, pool: PoolState) -> None:
        """Delete a pool, unless somebody has come to use it."""
        try:
            now = self.batch.pool(pool.id)
        except ResourceNotFoundError:
            return
        jobs = [job.id for job in self.batch.jobs(pool.id) if job.state not in _OVER]
        if now.created != pool.created or jobs:
            raise ServiceError(f"it is used again{f', by {jobs[0]}' if jobs else ''}", pool=pool.id)
        self.batch.delete_pool(pool.id)

    def _scaling(self, pool: PoolState, formula: str, nodes: Sequence[NodeState], dead: Sequence[JobDetails]) -> None:
        """A pool that scales lets its nodes go by itself: soon, unless something holds them."""
        if dead and nodes:
            # Its nodes are there for jobs of the dead, and go with the last one of them.
            leaks, last = self.found.leaks, _title(dead[-1])
            place = next(at for at, leak in enumerate(leaks) if (leak.kind, leak.name) == ("job", last))
            leaks[place] = replace(leaks[place], nodes=len(nodes))
        floor, since, run = floor_of(formula), _idle_since(nodes), pool.autoscale_run
        if floor is not None and floor.until > self.now:
            self._floor(pool, floor, dead)
        elif run is not None and run.error and since is not None:
            why = f"its formula fails ({run.error}), and {count(len(nodes), 'node')} had nothing to do"
            if self.now - since < self.idle:
                self._spare("pool", pool.id, f"{why} for {_span(self.now - since)}", len(nodes))
            else:
                self._delete(pool, why, since, len(nodes))
        elif since is not None and not dead:
            size = recorded_size(pool)
            least = 0 if size is None else size.dedicated_nodes.min + size.spot_nodes.min
            own = "its own formula lets them go"
            if least:
                own = f"it has {count(least, 'node')} at all times by its poolSize"
            why = f"{count(len(nodes), 'node')} without anything to do since {_moment(since)}; {own}"
            self._spare("pool", pool.id, why, len(nodes))

    def _floor(self, pool: PoolState, floor: Floor, dead: Sequence[JobDetails]) -> None:
        said = f"{floor.dedicated} dedicated and {floor.spot} spot node(s)"
        if not dead:
            # Somebody may have asked for them ahead of his job.
            self._spare("floor", pool.id, f"{said} were asked for until {_moment(floor.until)}, and no job is there")
            return
        why = f"{said} were asked for until {_moment(floor.until)} by a client that is gone"
        remove = partial(self._lower, pool)
        removal = "let the pool's own formula decide"
        self.found.leaks.append(Leak(kind="floor", name=pool.id, why=why, removal=removal, remove=remove))

    def _lower(self, pool: PoolState) -> None:
        jobs = [job.id for job in self.batch.jobs(pool.id) if job.state not in _OVER]
        if jobs:
            raise ServiceError(f"the job {jobs[0]} may count on it", pool=pool.id)
        now = self.batch.pool(pool.id)
        if now.autoscale is not None and floor_of(now.autoscale.formula) is not None:
            self.batch.enable_autoscale(pool.id, without_floor(now.autoscale.formula), etag=now.etag)

    # storage --------------------------------------------------------------------------------------------

    def _blobs(self, removed: Sequence[Stored]) -> None:
        """What `storage gc` would remove, by kind."""
        words = {
            "session": ("of sessions that are over", "their clients have not removed them"),
            "buffers": ("buffers", f"nobody has used them for {_span(KEPT)}"),
            "files": ("files for nodes", f"nobody has used them for {_span(KEPT)}"),
            "given": ("files of users", f"nobody has used them for {_span(KEPT)}"),
            "environment": ("environments", f"nobody has used them for {_span(KEPT)}"),
        }
        for kind, (name, why) in words.items():
            parts = [each for each in removed if each.kind == kind]
            if not parts:
                continue
            only = {each.name for each in parts}
            number, containers = count(sum(each.blobs for each in parts), "blob"), count(len(only), "container")
            self.found.leaks.append(
                Leak(
                    kind="blobs",
                    name=name,
                    why=f"{number} in {containers}: {why}",
                    since=max(each.modified for each in parts),
                    removal=f"remove the {number}, as `joblib-azure storage gc` does",
                    bytes=sum(each.bytes for each in parts),
                    remove=partial(storage.collect, self.blobs, self.batch, age=KEPT, only=only),
                )
            )


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _idle_since(nodes: Sequence[NodeState]) -> datetime | None:
    """Return since when no node does anything; None where one does, may soon, or there is none."""
    if not nodes or any(node.state not in _IDLE or node.running_tasks or node.since is None for node in nodes):
        return None
    return max(node.since for node in nodes if node.since is not None)


def _title(job: JobDetails) -> str:
    name = labels.name_of(job)
    return job.id if name is None else f"{job.id} ({labels.kind_of(job)} {name!r})"


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _span(time: timedelta) -> str:
    seconds = time.total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return count(int(seconds // length), unit)
    return count(int(seconds), "second")
