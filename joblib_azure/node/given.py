"""The files that a job's calls are given, and those that they leave.

In::

    job preparation's folder/joblib_azure_files/…   downloaded by the service, once a node
                              └─ links ─► the folder of each task, in which its calls run

A task has folders of its own, so that what its calls write beside the files is its own too.

Out, where it depends on the calls: for the service a task whose calls raise has succeeded, since what they raise is a
result. So what is to be stored once all of a task's calls have returned, or once one has not, is stored by the task
itself. What is to be stored in any case, or after a task that has failed, is the service's to store.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

#: In the folder of the job preparation task.
FOLDER = "joblib_azure_files"
#: Tells a task that there are files.
VARIABLE = "JOBLIB_AZURE_FILES"
_WILDCARDS = re.compile(r"[*?\[]")


def working_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder in which a task's calls run."""
    return Path(environ["AZ_BATCH_TASK_WORKING_DIR"])


def link_files(environ: Mapping[str, str]) -> None:
    """Let a task's calls find the files that they are given. :raises OSError:"""
    if VARIABLE not in environ:
        return
    source = Path(environ["AZ_BATCH_JOB_PREP_WORKING_DIR"]) / FOLDER
    folder = working_folder(environ)
    for above, folders, files in os.walk(source):
        target = folder / Path(above).relative_to(source)
        for name in folders:
            (target / name).mkdir(exist_ok=True)
        for name in files:
            try:
                (target / name).symlink_to(os.path.join(above, name))
            except FileExistsError:
                pass  # an earlier run of this task, which may have made it its own


def has_wildcards(pattern: str) -> bool:
    """Tell whether a pattern may match several files."""
    return bool(_WILDCARDS.search(pattern))


def fixed_folder(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard; empty where there are none."""
    parts = PurePosixPath(pattern).parts[:-1]
    fixed = [has_wildcards(part) for part in parts]
    return "/".join(parts[: fixed.index(True) if True in fixed else len(parts)])


def matches(pattern: str, path: str) -> bool:
    """Tell whether a file's path matches a pattern, as Batch has it.

    ``*``, ``?`` and ``[…]`` stay within a name, ``**`` is any number of folders, and names that begin with a dot are
    matched by patterns that do.
    """
    return _matches(PurePosixPath(pattern).parts, PurePosixPath(path).parts)


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern or not path:
        return not pattern and not path
    first, rest = pattern[0], pattern[1:]
    hidden = path[0].startswith(".")
    if first == "**":
        here = _matches(rest or ("*",), path)
        return here or (len(path) > 1 and not hidden and _matches(pattern, path[1:]))
    if (hidden and not first.startswith(".")) or not fnmatch.fnmatchcase(path[0], first):
        return False
    return _matches(rest, path[1:])


def found_files(folder: Path, pattern: str) -> Iterator[str]:
    """Yield the paths of the files below `folder` that match; of links, those that a call has made."""
    top = folder / fixed_folder(pattern)
    for above, _, files in os.walk(top):
        for name in sorted(files):
            file = Path(above) / name
            path = file.relative_to(folder).as_posix()
            if matches(pattern, path) and file.is_file():
                yield path


def store_files(
    uploads: Sequence[Mapping[str, str]],
    folder: Path,
    task: str,
    *,
    failed: bool,
    put: Callable[[str, str, Path], object],
) -> None:
    """Store the files that are wanted now that it is known how a task's calls have ended.

    Parameters
    ----------
    uploads : sequence of mapping
        With the ``pattern``, the ``url`` of a container with a SAS, the ``path`` in it above the task's files, and
        ``on``: ``success`` of all calls or ``failure`` of one.
    folder : Path
        In which they ran.
    task : str
    failed : bool
        Whether one has failed.
    put : callable
        Stores a file: the container's URL, the blob's name, the file.
    """
    for each in uploads:
        if each["on"] == ("failure" if failed else "success"):
            for path in found_files(folder, each["pattern"]):
                put(each["url"], f"{each['path']}{task}/{path}", folder / path)
