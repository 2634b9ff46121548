"""Where the package keeps what outlives a task on a node: a root of its own, outside of Batch's folders.

::

    <disk>/joblib_azure/<uid>/environments/<lock>/     a ready environment
                              code/<key>/              the node code, its supervisor's socket, lock and log
                              buffers/, overlays/      caches of what calls are given
                              cores/                   tokens: who may compute
                              leases/                  what the tasks that run now work with

Batch puts its own root (``AZ_BATCH_NODE_ROOT_DIR``, ``/mnt/batch/tasks``) on the node's largest local disk; ours lies
beside it. The start task makes the first folder, for all users as ``/tmp`` is; where it is not, ``/var/tmp`` serves.
Tasks in containers have what is below Batch's root and nothing else of the node: theirs is in Batch's shared folder.

The job preparation's program imports it too, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

NAME = "joblib_azure"
#: Where there is no place beside Batch's root.
_ELSEWHERE = "/var/tmp"


def root(environ: Mapping[str, str]) -> Path:
    """Return the folder of this user on this node, having made it where it was not there.

    Parameters
    ----------
    environ : mapping
        Of a Batch task.

    Raises
    ------
    OSError
        Where there is no place for it, or somebody else has taken it.
    """
    failure: OSError | None = None
    for base in _bases(environ):
        mine = base / str(os.getuid())
        try:
            if not base.exists():
                base.mkdir(exist_ok=True)
                base.chmod(0o1777)
            if base.lstat().st_uid not in (0, os.getuid()):
                raise PermissionError(f"{base} is another user's, who may change what is in it")
            mine.mkdir(mode=0o700, exist_ok=True)
            found = mine.lstat()
            if found.st_uid != os.getuid() or found.st_mode & 0o40077 != 0o40000:
                raise PermissionError(f"{mine} is not a folder of this user's alone")
        except OSError as exc:
            failure = exc
            continue
        return mine
    raise failure or OSError("this node has no place for caches")


def _bases(environ: Mapping[str, str]) -> Iterator[Path]:
    batch_root = environ["AZ_BATCH_NODE_ROOT_DIR"]
    if "JOBLIB_AZURE_CONTAINER" in environ:
        # Of the node a container sees what is below Batch's root, and all else that it writes ends with it.
        yield Path(environ["AZ_BATCH_NODE_SHARED_DIR"]) / NAME
        return
    yield Path(batch_root).parent.parent / NAME
    # Emulated nodes share a machine: each has its own.
    yield Path(_ELSEWHERE) / f"{NAME}-{hashlib.sha256(batch_root.encode()).hexdigest()[:12]}"
