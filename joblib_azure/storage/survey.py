"""What lies in a storage account, in which state it is, and the removal of what nobody needs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from urllib.parse import urlsplit

from ..errors import ResourceExistsError, ResourceNotFoundError, ServiceError
from ..service import BatchService, BlobItem, BlobService, ContainerItem
from .names import BUFFERS, JOB_PREFIX, PREFIX, SESSION, Kind, files_container, kind_of, session_containers

logger = logging.getLogger(__name__)

# Metadata of a session's containers. Names of metadata have to be identifiers of C.
_OF_JOB, _OF_BATCH, _KEEP_UNTIL = "joblib_azure_job", "joblib_azure_batch", "joblib_azure_keep_until"

#: What is in use is touched when it was last modified that long ago: once a day is cheap, however much is used.
TOUCH_AFTER = timedelta(days=1)
#: A session creates its containers some time before its job, with uploads in between; clocks differ besides.
GRACE = timedelta(hours=1)
#: Nodes that join a running job fetch what its session was given at its start, for the 7 days that a SAS lives; it may
#: have been touched `TOUCH_AFTER` before that.
_FETCHED = timedelta(days=7) + TOUCH_AFTER
_STREAMS = 8

#: Kinds of containers that go as a whole.
_WHOLE = ("environment", "given")
_IN_USE, _LEFT_OVER, _CACHE, _KEPT = "in use", "left over", "cache", "kept until"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A container of ours, or a part of what is in it.

    Parameters
    ----------
    kind : {"buffers", "files", "environment", "given", "session"}
    name : str
        Of the container.
    blobs, bytes : int
        How many there are, and their size.
    modified : datetime
        When the newest of it was stored or last used.
    state : str
        ``cache``, ``in use``, ``left over``, ``kept until …``, or else why it is left alone.
    job : str
        Of the session, where it is one's.
    """

    kind: Kind
    name: str
    blobs: int
    bytes: int
    modified: datetime
    state: str
    job: str = ""

    @property
    def left_over(self) -> bool:
        """Whether a session has left it behind."""
        return self.state == _LEFT_OVER


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `collect` has removed (or would have), and what it has left; empty parts are left out."""

    removed: tuple[Stored, ...]
    left: tuple[Stored, ...]


def remove_job(batch: BatchService, blobs: BlobService, job: str) -> None:
    """Delete a job and its containers, without waiting for its end; one that is gone is no error.

    Raises
    ------
    ServiceError
    """
    batch.end_job(job, delete=True)
    for container in (*session_containers(job), files_container(job)):
        blobs.delete_container(container)


# marks --------------------------------------------------------------------------------------------------------


def session_metadata(job: str, *, batch_account: str) -> dict[str, str]:
    """Return what a session writes on its containers, so that others know whose they are.

    Parameters
    ----------
    job : str
    batch_account : str
        Endpoint of the Batch account (`BatchService.endpoint`): a storage account may serve several, and the jobs of
        one are not seen from another.
    """
    return {_OF_JOB: job, _OF_BATCH: _host(batch_account)}


def keep(blobs: BlobService, container: str, days: float) -> datetime | None:
    """Mark a container as kept: neither `collect` nor `sweep` removes it until then.

    A session that is to keep its containers marks them before it ends its job: others see them as left over from
    then on.

    Returns
    -------
    datetime or None
        Until when it is kept; None where the container is not there.

    Raises
    ------
    ServiceError
    """
    found = find_container(blobs, container)
    if found is None:
        return None
    until = _now() + timedelta(days=days)
    return until if blobs.mark_container(container, {**found.metadata, **kept_until(until)}) else None


def kept_until(until: datetime) -> dict[str, str]:
    """Return what is written on a container that neither `collect` nor `sweep` is to remove until then."""
    return {_KEEP_UNTIL: until.isoformat(timespec="seconds")}


def stale(modified: datetime) -> bool:
    """Tell whether what is used now has to be touched, so that it does not look unused."""
    return _now() - modified > TOUCH_AFTER


def touch_container(blobs: BlobService, container: str) -> None:
    """Make a container that is used now look so; one that is not there is no error."""
    found = find_container(blobs, container)
    if found is not None and stale(found.modified):
        blobs.mark_container(container, found.metadata)


def find_container(blobs: BlobService, container: str) -> ContainerItem | None:
    """Return a container as it is now; None where it is not there."""
    return next((item for item in blobs.containers(container) if item.name == container), None)


# looking ------------------------------------------------------------------------------------------------------


def look(blobs: BlobService, batch: BatchService, *, grace: timedelta = GRACE) -> list[Stored]:
    """Return all that is ours in a storage account, container by container; parameters and errors as in `collect`."""
    return [stored for stored, _ in _survey(blobs, batch, grace)]


def buffers(blobs: BlobService) -> list[BlobItem]:
    """Return the cached buffers, the largest first."""
    return sorted(_content(blobs, BUFFERS), key=lambda item: (-item.size, item.name))


def _survey(blobs: BlobService, batch: BatchService, grace: timedelta) -> list[tuple[Stored, list[BlobItem]]]:
    # The containers before the jobs: a session that begins in between has young containers.
    kinds = [(kind, item) for item in blobs.containers(PREFIX) if (kind := kind_of(item.name)) is not None]
    running = batch.running_jobs(PREFIX) if any(kind == "session" for kind, _ in kinds) else set[str]()
    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-storage") as pool:
        contents = list(pool.map(lambda each: _content(blobs, each[1].name), kinds))
    surveyed = []
    for (kind, item), content in zip(kinds, contents, strict=True):
        session = SESSION.fullmatch(item.name)
        # A session that uses one of these touches its container, and not what is in it.
        known = [item.modified] if kind in _WHOLE or not content else []
        stored = Stored(
            kind=kind,
            name=item.name,
            blobs=len(content),
            bytes=sum(blob.size for blob in content),
            modified=max([*known, *(blob.modified for blob in content)]),
            state=_CACHE if session is None else _state(item, running, _host(batch.endpoint), grace),
            job="" if session is None else session[1],
        )
        surveyed.append((stored, content))
    return surveyed


def _content(blobs: BlobService, container: str) -> list[BlobItem]:
    try:
        return list(blobs.blobs(container, ""))
    except ResourceNotFoundError:
        return []  # it is going, or never was


def _state(item: ContainerItem, running: Collection[str], batch_account: str, grace: timedelta) -> str:
    """Say whether a session's container is left over, or why it is not."""
    session, now = SESSION.fullmatch(item.name), _now()
    if session is None:
        return "not a session's"
    owner = item.metadata.get(_OF_BATCH)
    if owner is not None and owner != batch_account:
        return f"of the Batch account {owner}"
    if session[1] in running:
        return _IN_USE
    until = _kept_until(item)
    if until is not None and until > now:
        return f"{_KEPT} {until:%Y-%m-%d %H:%M} UTC"
    if owner is None and now - _made(session[2], item) < _FETCHED:
        return "of an older version: its Batch account is not known"
    if now - item.modified < grace:
        return "new: its job may be about to start"
    return _LEFT_OVER


def needed(blobs: BlobService, batch: BatchService, container: str) -> str:
    """Return why a container of ours must not be touched now; empty where nothing that may run needs it.

    Raises
    ------
    ServiceError
    """
    found = {item.name: item for item in blobs.containers(PREFIX) if kind_of(item.name) == "session"}
    running = batch.running_jobs(PREFIX)
    account = _host(batch.endpoint)
    if kind_of(container) == "session":
        if container not in found:
            return ""
        job = str(SESSION.fullmatch(container)[1])  # type: ignore[index]
        later = sorted(each for each in running if each != job and _same_name(each, job))
        if later:
            return f"job {later[0]} runs, and uses what this one has computed"
        state = _state(found[container], running, account, GRACE)
        return "" if state == _LEFT_OVER or state.startswith(_KEPT) else state
    states = {item.name: _state(item, running, account, GRACE) for item in found.values()}
    # What is of an older version, or of another Batch account, may be about to fetch it as well.
    busy = sorted(name for name, state in states.items() if state != _LEFT_OVER and not state.startswith(_KEPT))
    return f"the job of {busy[0]} may run ({states[busy[0]]}), and its nodes may fetch it" if busy else ""


def _same_name(job: str, other: str) -> bool:
    """Whether two Batch jobs are runs of the same script."""
    return job.startswith(JOB_PREFIX) and job[:-4] == other[:-4]


def _kept_until(item: ContainerItem) -> datetime | None:
    written = item.metadata.get(_KEEP_UNTIL)
    if written is None:
        return None
    try:
        return datetime.fromisoformat(written).astimezone(timezone.utc)
    except ValueError:
        # Somebody wants it kept, and only not how long.
        return datetime.max.replace(tzinfo=timezone.utc)


def _made(stamp: str | None, item: ContainerItem) -> datetime:
    try:
        return datetime.strptime(stamp or "", "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return item.modified


# removing -----------------------------------------------------------------------------------------------------


def collect(
    blobs: BlobService,
    batch: BatchService,
    *,
    age: timedelta,
    dry_run: bool = False,
    grace: timedelta = GRACE,
    only: Collection[str] | None = None,
) -> Collected:
    """Remove what nobody has used for `age`, and what sessions have left behind.

    While sessions run, files, environments and what calls are given stay for at least 8 days, since nodes that join may
    still fetch them. A buffer that a session lacks then is stored again.

    Parameters
    ----------
    blobs : BlobService
    batch : BatchService
        Whose jobs say which sessions run.
    age : timedelta
        Of buffers, files and environments. What is used is touched once a day, so this is right to within a day.
    dry_run : bool
        Say what would be removed, and remove nothing.
    grace : timedelta
        For which a session's containers may be there before its job.
    only : collection of str, optional
        Names of the containers that are looked at; by default all.

    Raises
    ------
    ServiceError
        What was removed up to then is gone; it may be called again.
    """
    surveyed, now = _survey(blobs, batch, grace), _now()
    busy = any(
        stored.kind == "session" and not stored.left_over and not stored.state.startswith(_KEPT)
        for stored, _ in surveyed
    )
    removed: list[Stored] = []
    left: list[Stored] = []
    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-storage") as pool:
        for stored, content in surveyed:
            if only is not None and stored.name not in only:
                continue
            held = busy and age < _FETCHED and stored.kind != "buffers"
            cutoff = now - (_FETCHED if held else age)
            reason = "sessions run, and their nodes may fetch it" if held else f"used within {_days(age)}"
            if stored.kind == "session":
                gone = stored.left_over and (dry_run or _remove(blobs, stored.name))
                (removed if gone else left).append(stored)
            elif stored.kind in _WHOLE:
                gone = stored.modified <= cutoff and (dry_run or _remove(blobs, stored.name, unmodified_since=cutoff))
                (removed if gone else left).append(stored if gone else replace(stored, state=reason))
            else:
                old = [blob for blob in content if blob.modified <= cutoff]
                if not dry_run:
                    delete = partial(_delete, blobs, stored.name, cutoff)
                    old = [blob for blob, done in zip(old, pool.map(delete, old), strict=True) if done]
                names = {blob.name for blob in old}
                rest = [blob for blob in content if blob.name not in names]
                removed += _part(stored, old, stored.state)
                left += _part(stored, rest, reason)
    return Collected(removed=tuple(removed), left=tuple(left))


def sweep(blobs: BlobService, batch: BatchService, *, batch_account: str = "", grace: timedelta = GRACE) -> list[str]:
    """Remove the containers that sessions have left behind, and return their names.

    One listing of containers, and one of jobs where there may be something to remove. What `collect` leaves alone, it
    leaves alone; an error is logged, and nothing depends on it.

    Parameters
    ----------
    blobs : BlobService
    batch : BatchService
    batch_account : str
        As for `session_metadata`; by default the endpoint of `batch`.
    grace : timedelta
        As in `collect`.
    """
    removed: list[str] = []
    account = _host(batch_account or batch.endpoint)
    try:
        containers = [item for item in blobs.containers(PREFIX) if kind_of(item.name) == "session"]
        containers = [item for item in containers if _state(item, (), account, grace) == _LEFT_OVER]
        if containers:
            running = batch.running_jobs(PREFIX)
            for item in containers:
                if _state(item, running, account, grace) == _LEFT_OVER and _remove(blobs, item.name):
                    removed.append(item.name)
    except ServiceError as exc:
        logger.warning("looking for what dead clients have left in storage: %s", exc)
    if removed:
        logger.info("removed what dead clients had left in storage: %s", ", ".join(removed))
    return removed


def _delete(blobs: BlobService, container: str, cutoff: datetime, item: BlobItem) -> bool:
    # What was touched since the listing stays.
    return blobs.delete(container, item.name, unmodified_since=cutoff)


def _remove(blobs: BlobService, container: str, *, unmodified_since: datetime | None = None) -> bool:
    """Delete a container, unless somebody has begun to use it or to keep it since it was listed."""
    found = find_container(blobs, container)
    if found is None:
        return True
    until = _kept_until(found)
    if until is not None and until > _now():
        return False
    if unmodified_since is not None and found.modified > unmodified_since:
        return False
    try:
        blobs.delete_container(container)
    except ResourceExistsError:
        pass  # "ContainerBeingDeleted": another client does the same
    return True


def _part(stored: Stored, content: Sequence[BlobItem], state: str) -> list[Stored]:
    """Return a part of a shared container, if there is any."""
    if not content:
        return []
    newest, size = max(blob.modified for blob in content), sum(blob.size for blob in content)
    return [replace(stored, blobs=len(content), bytes=size, modified=newest, state=state)]


def _days(age: timedelta) -> str:
    days = age.total_seconds() / 86400
    return f"{days:.3g} day{'' if days == 1 else 's'}"


def _host(endpoint: str) -> str:
    """What identifies a Batch account: its host, and the port of an emulator."""
    return (urlsplit(endpoint).netloc or endpoint).strip("/").lower()


def _now() -> datetime:
    return datetime.now(timezone.utc)
