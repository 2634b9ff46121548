"""What is written on Batch jobs: names that people gave them, and whose they are.

A name is a detached job's, or the label of a script that may be run again. Of a script each run has a Batch job of its
own, a *generation*; of a detached job there is one. The job of a session says which process is its client, so that
others can tell that this one is gone.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from .codec import KEY_BYTES
from .errors import ConfigurationError, JobError
from .service import BatchService, JobDetails
from .storage import JOB_PREFIX

#: Version of what is written for those who come later, and of the ids of tasks: a client reads its own only.
FORMAT = 1
#: Metadata of the Batch job.
#: Variable of a job's environment that holds its key.
KEY = "JOBLIB_AZURE_KEY"
_NAME, _FORMAT, _KIND = "joblib_azure_name", "joblib_azure_format", "joblib_azure_kind"
_HOST, _MACHINE, _PID, _LEASE = (f"joblib_azure_{each}" for each in ("host", "machine", "pid", "lease"))
#: Container names have at most 63 characters, of which the prefix, a generation and "-out" take 19.
LONGEST_NAME = 40
_VALID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

Kind = Literal["detached", "script"]


def check_name(name: str, setting: str = "name") -> str:
    """Return a job's name. :raises ConfigurationError: it is none."""
    if not isinstance(name, str) or len(name) > LONGEST_NAME or not _VALID.fullmatch(name):
        raise ConfigurationError(
            f"{setting}={name!r} cannot be a job's: lower-case letters, digits and single hyphens between them, at "
            f"most {LONGEST_NAME} in all, since storage containers are named after it"
        )
    return name


def new_name() -> str:
    """Return a name that no other job has."""
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def batch_id(name: str, generation: int) -> str:
    """Return the id of a Batch job of that name."""
    return f"{JOB_PREFIX}{name}-{generation:03d}"


def generation_of(details: JobDetails) -> int:
    """Return which of its name's Batch jobs it is, from 1 on."""
    return int(details.id[-3:])


def metadata_of(name: str, kind: Kind) -> dict[str, str]:
    """Return what is written on a Batch job of that name."""
    return {_NAME: name, _FORMAT: str(FORMAT), _KIND: kind}


def name_of(details: JobDetails) -> str | None:
    """Return a Batch job's name; None where it has none."""
    return details.metadata.get(_NAME)


def kind_of(details: JobDetails) -> str:
    """Return whether it is a detached job, or a script's."""
    return details.metadata.get(_KIND, "detached")


def key_of(details: JobDetails) -> bytes:
    """Return a job's key, from what the service tells of that job alone.

    Raises
    ------
    JobError
        Where there is none: with an empty one anybody could have made what is unpickled.
    """
    try:
        key = base64.b64decode(details.environment.get(KEY, ""), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise JobError(
            f"job {name_of(details) or details.id!r} has no key in its settings on the service, so nothing of what is "
            "stored of it can be trusted, and nothing was unpickled. Delete it, and submit it again",
            job=details.id,
        )
    return key


def jobs_of(batch: BatchService, name: str) -> list[JobDetails]:
    """Return all Batch jobs of a name, the oldest first, those that are being deleted too.

    Raises
    ------
    ServiceError
    """
    # The ids of some other names begin like that too.
    found = [each for each in batch.job_list(f"{JOB_PREFIX}{name}-") if name_of(each) == name]
    return sorted(found, key=generation_of)


def check_format(details: JobDetails) -> None:
    """:raises JobError: another version of this package has made it."""
    found = details.metadata.get(_FORMAT)
    if found != str(FORMAT):
        raise JobError(
            f"job {name_of(details) or details.id!r} was submitted by another version of joblib_azure: its format is "
            f"{found or 'not known'}, this version reads {FORMAT}. Use the version that submitted it",
            job=details.id,
        )


# whose a job is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Client:
    """The process that a job is for.

    Parameters
    ----------
    host : str
    pid : int
    here : bool
        Whether that is this machine, since its last start, and its processes are seen from here.
    lease : timedelta
        For which it lets the job live on at most, whenever it says that it lives: in each third of it.
    """

    host: str
    pid: int
    here: bool
    lease: timedelta

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def lives(self) -> bool | None:
        """Whether it is there; None where that cannot be seen from here."""
        return is_there(self.pid) if self.here else None


def client_marks(lease: timedelta) -> dict[str, str]:
    """Return what is written on the job of a session of this process."""
    return {
        _HOST: socket.gethostname(),
        _MACHINE: _machine(),
        _PID: str(os.getpid()),
        _LEASE: str(int(lease.total_seconds())),
    }


def client_of(details: JobDetails) -> Client | None:
    """Return whose a job is; None where it does not say so."""
    found = details.metadata
    try:
        return Client(
            host=found[_HOST],
            pid=int(found[_PID]),
            here=bool(_machine()) and found[_MACHINE] == _machine(),
            lease=timedelta(seconds=int(found[_LEASE])),
        )
    except (KeyError, ValueError):
        return None


def is_there(pid: int) -> bool:
    """Tell whether there is a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _machine() -> str:
    """What no other machine has, and no other container on this one, nor this one after its next start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""
