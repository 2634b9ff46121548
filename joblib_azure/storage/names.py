"""What is called how in a storage account: containers of ours, and the jobs that they belong to."""

from __future__ import annotations

import re
from typing import Literal

#: Container of the content-addressed buffers, shared by all jobs of the account.
BUFFERS = "joblib-azure-buffers"
#: Container of the files that nodes cannot fetch by themselves, shared by all jobs of the account.
FILES = "joblib-azure-environments"
#: What the names of the containers of environments' archives begin with; the lock's digest follows.
ARCHIVES = "joblib-azure-env-"
#: What the names of the containers of files that calls are given begin with; the name of their content follows.
GIVEN = "joblib-azure-given-"
#: What the names of all our containers, and the ids of all sessions' jobs, begin with.
PREFIX = "joblib-"
#: What the ids of detached jobs begin with; their name and a number of three digits follow.
JOB_PREFIX = "joblib-job-"
_JOB = re.compile(rf"joblib-(\d{{8}}-\d{{6}})-[0-9a-f]{{8}}|{JOB_PREFIX}[a-z0-9-]+-\d{{3}}")
#: A session's, or a detached job's, container; its first group is the job's id.
SESSION = re.compile(rf"({_JOB.pattern})-(?:in|out|files)")

Kind = Literal["buffers", "files", "environment", "given", "session"]


def is_session(job: str) -> bool:
    """Tell whether a job is a session's, by its id; a detached job is none."""
    return _JOB.fullmatch(job) is not None and not job.startswith(JOB_PREFIX)


def session_containers(job: str) -> tuple[str, str]:
    """Return the names of a session's, or a detached job's, containers: what goes to the nodes, and what comes back."""
    return f"{job}-in", f"{job}-out"


def files_container(job: str) -> str:
    """Return the name of the container of the files that a detached job's calls leave."""
    return f"{job}-files"


def given_container(digest: str) -> str:
    """Return the name of the container of files that calls are given, by the digest of their names and content."""
    return f"{GIVEN}{digest[:32]}"


def archive_container(lock: str) -> str:
    """Return the name of the container of an environment's archive, by its lock's digest."""
    return f"{ARCHIVES}{lock}"


def kind_of(container: str) -> Kind | None:
    """Return what a container of ours is for; None for one that is not ours."""
    if container in (BUFFERS, FILES):
        return "buffers" if container == BUFFERS else "files"
    if container.startswith(ARCHIVES):
        return "environment"
    if container.startswith(GIVEN):
        return "given"
    return "session" if SESSION.fullmatch(container) else None
