"""What a detached job is called, and what it says of itself: on the service in clear, in storage under its key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from ..codec import seal, unseal
from ..errors import ConfigurationError, IntegrityError, JobError, ResourceNotFoundError
from ..labels import kind_of, metadata_of, name_of
from ..service import BlobService, JobDetails

#: Metadata of the Batch job, beside its name.
_ERRORS, _KEEP = "joblib_azure_on_error", "joblib_azure_keep"
#: The blob beside the bundles that says what the job is.
_DESCRIPTION = "description"
_TASK = re.compile(r"(?P<call>[a-z0-9]+)-(?P<first>[0-9]{9})-(?P<calls>[0-9]{1,9})")

#: Seconds between two signs of life of a submission.
HEARTBEAT = 5.0

OnError = Literal["raise", "return", "drop"]
Keep = Literal["always", "on_error", "never"]


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A job in a listing.

    Parameters
    ----------
    name : str
    kind : {"detached", "script"}
        Submitted and left to itself, or the latest run of a script with ``job=…``.
    id : str
        Of the Batch job.
    pool, state : str
    created : datetime
    ended : datetime, optional
    reason : str
        Why it ended.
    """

    name: str
    kind: str
    id: str
    pool: str
    state: str
    created: datetime
    ended: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a job's submission leaves for those who attach to it.

    Parameters
    ----------
    call : str
        Prefix of its outcomes.
    calls, tasks : int
        How many were submitted up to now.
    complete : bool
        Whether those are all.
    beat : int
        Grows as long as the submission lives.
    function : str
        Name of the first call's function.
    vm_size : str
        Of the pool's nodes.
    prices : mapping
        What the submitter's configuration says of them.
    outputs : sequence of (str, str)
        Containers of files that its calls leave, and what the names of its own in them begin with.
    """

    call: str
    calls: int
    tasks: int
    complete: bool
    beat: int = 0
    function: str = ""
    vm_size: str = ""
    prices: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[Sequence[str]] = ()


def check_choice(setting: str, value: str, choices: Any) -> None:
    """:raises ConfigurationError: the value is none of a `Literal`'s."""
    if value not in get_args(choices):
        raise ConfigurationError(f"{setting}={value!r}: one of {', '.join(map(repr, get_args(choices)))} is needed")


def job_metadata(name: str, *, on_error: OnError, keep: Keep) -> dict[str, str]:
    """Return what is written on the Batch job."""
    return {**metadata_of(name, "detached"), _ERRORS: on_error, _KEEP: keep}


def policies(details: JobDetails) -> tuple[OnError, Keep]:
    """Return what the submission said of errors, and of what stays."""
    on_error, keep = details.metadata[_ERRORS], details.metadata[_KEEP]
    check_choice("on_error", on_error, OnError)
    check_choice("keep", keep, Keep)
    return on_error, keep  # type: ignore[return-value]


def info_of(details: JobDetails) -> JobInfo:
    """Return a job as listings show it."""
    return JobInfo(
        name=name_of(details) or "",
        kind=kind_of(details),
        id=details.id,
        pool=details.pool,
        state=details.state,
        created=details.created,
        ended=details.ended,
        reason=details.reason,
    )


def task_id(call: str, first: int, calls: int) -> str:
    """Return the id of the task that runs `calls` calls from the `first` on: the id tells which are lost with it."""
    return f"{call}-{first:09d}-{calls}"


def tasks_between(call: str, low: int, high: int, most: int = 8) -> list[str]:
    """Return what the ids of tasks begin with whose first calls are from `low` to `high`, in so many words at most.

    They fit others near those too.
    """
    for dropped in range(10):
        blocks = range(low // 10**dropped, high // 10**dropped + 1)
        if len(blocks) <= most:
            break
    return [f"{call}-{block:0{9 - dropped}d}"[: len(call) + 10 - dropped] for block in blocks]


def calls_of(task: str) -> range:
    """Return the calls of a task; none for a task of another kind."""
    found = _TASK.fullmatch(task)
    if found is None:
        return range(0)
    first = int(found["first"])
    return range(first, first + int(found["calls"]))


def write_description(blobs: BlobService, container: str, key: bytes, job: str, description: Description) -> None:
    """Store what the submission has to say by now."""
    blobs.put(container, _DESCRIPTION, seal(key, f"{job}/{_DESCRIPTION}", vars(description)))


def read_description(blobs: BlobService, container: str, key: bytes, job: str) -> Description:
    """Return what the submission said last.

    Raises
    ------
    JobError
        Where it is gone.
    IntegrityError
    ServiceError
    """
    try:
        data = blobs.read(container, _DESCRIPTION)
    except ResourceNotFoundError as exc:
        raise JobError(
            f"job {job} has lost its blobs: {container}/{_DESCRIPTION} is not there, so its results cannot be had. "
            "Submit its calls again",
            job=job,
        ) from exc
    record = unseal(key, f"{job}/{_DESCRIPTION}", data)
    if record is None:
        raise IntegrityError(f"{container}/{_DESCRIPTION} is cut short")
    head: Mapping[str, Any] = record.head
    outputs = tuple((container, prefix) for container, prefix in head.get("outputs", ()))
    return Description(**{**head, "outputs": outputs})
