"""What of ours lies in a storage account, and what of it nobody needs any more.

::

    joblib-azure-buffers        content-addressed buffers      a blob goes when nobody has used it for long
    joblib-azure-environments   files shipped to nodes         the same
    joblib-azure-env-<lock>     archive of an environment      goes when nobody has used it for long
    joblib-azure-given-<name>   files that calls are given     the same
    <job>-in, <job>-out         a session's own                go when its job is over, unless they are kept
                                a detached job's               the same; they are kept until somebody deletes the job
    <job>-files                 files that its calls leave     the same

A session removes its own two containers when it ends. What a client that died has left, `sweep` finds when the next
session opens, and `collect` when a person asks for it; the first four are a cache, which only `collect` makes smaller.
Use shows as a blob's or a container's Last-Modified: whoever uses one touches it, once in `TOUCH_AFTER`.
"""

from __future__ import annotations

from .files import fetch, places, remove
from .names import (
    ARCHIVES,
    BUFFERS,
    FILES,
    GIVEN,
    JOB_PREFIX,
    PREFIX,
    Kind,
    archive_container,
    files_container,
    given_container,
    is_session,
    kind_of,
    session_containers,
)
from .survey import (
    GRACE,
    Collected,
    Stored,
    buffers,
    collect,
    find_container,
    keep,
    kept_until,
    look,
    needed,
    remove_job,
    session_metadata,
    stale,
    sweep,
    touch_container,
)

__all__ = [
    "ARCHIVES",
    "BUFFERS",
    "FILES",
    "GIVEN",
    "GRACE",
    "JOB_PREFIX",
    "PREFIX",
    "Collected",
    "Kind",
    "Stored",
    "archive_container",
    "buffers",
    "collect",
    "fetch",
    "files_container",
    "find_container",
    "given_container",
    "is_session",
    "keep",
    "kept_until",
    "kind_of",
    "look",
    "needed",
    "places",
    "remove",
    "remove_job",
    "session_containers",
    "session_metadata",
    "stale",
    "sweep",
    "touch_container",
]
