"""Files that the calls of a job leave: which are stored when, by whom and where.

::

    submit(output_files=…) ── plan ──► on completion:  the service stores them, once a task's process has exited
                                   └─► on success or failure of calls:  the task, and for what it cannot see the service
    Job.output_files, download ◄── <container>/<path>/<task>/<file>   (`stored`)

A call that raises does not fail its Batch task: what it raised is its result, and a task that failed would be run again
by the service. So the service's own conditions cannot tell whether calls have failed, and the task, which can, stores
what depends on that (`node.given`). Where the task's process fails or is killed, the service stores what was to be
stored on failure.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Literal

from ..batchjob import MOST_LIFE
from ..errors import ConfigurationError
from ..node.given import fixed_folder, has_wildcards, matches
from ..resources import Resources, check_container
from ..service import BlobService, Upload
from ..storage import files_container, find_container, kind_of
from .names import check_choice

#: When a file is stored.
On = Literal["completion", "success", "failure"]

#: What a task writes beside its folder, which is the service's to store.
_LOGS = ("stdout.txt", "stderr.txt")
#: A task's files are stored after its process has exited, which the job's end bounds.
_AFTER_THE_JOB = timedelta(hours=1)


@dataclass(frozen=True)
class OutputFile:
    """Files of the folder in which calls run, that are stored when their task is over.

    Parameters
    ----------
    pattern : str
        Relative to that folder: ``*``, ``?`` and ``[…]`` within a name, ``**`` for any number of folders. Names that
        begin with a dot are matched by patterns that do. ``../stdout.txt``, ``../stderr.txt`` or ``../std*.txt`` are
        what the task has written, on completion only.
    on : {"completion", "success", "failure"}, default "completion"
        In any case; where all calls of the task have returned; where one has raised or was lost.
    container : str, optional
        One of the storage account's, which has to be there. By default one of the job's own, removed with the job.
    path : str, optional
        Of the folder in the container, in which each task has one. By default none, or, in a container that is not the
        job's own, the job's name.

    Examples
    --------
    >>> OutputFile("models/**/*.npz", on="success", container="models")
    OutputFile(pattern='models/**/*.npz', on='success', container='models', path='')
    """

    pattern: str
    _: KW_ONLY
    on: On = "completion"
    container: str | None = None
    path: str = ""

    @property
    def is_log(self) -> bool:
        """Whether it is what tasks write, and not their calls' files."""
        return self.pattern.startswith("../")


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """What the tasks of a job are to store, and where.

    Parameters
    ----------
    job : str
        Id of the job.
    wanted : tuple of OutputFile
        With the path of each.
    """

    job: str
    wanted: tuple[OutputFile, ...]

    @property
    def own(self) -> list[str]:
        """The container of the job's own, where it needs one."""
        return [files_container(self.job)] if any(each.container is None for each in self.wanted) else []

    @property
    def places(self) -> list[tuple[str, str]]:
        """Containers, and what the names of the files in them begin with."""
        return list(dict.fromkeys((self._container(each), _folder(each.path)) for each in self.wanted))

    def urls(self, blobs: BlobService, life: timedelta) -> dict[str, str]:
        """Return the containers' URLs, each with a SAS that writes, and neither reads nor lists."""
        life = max(life, min(life + _AFTER_THE_JOB, MOST_LIFE))
        return {name: blobs.container_url(name, "w", life) for name, _ in self.places}

    def of_task(self, task: str, urls: dict[str, str]) -> list[Upload]:
        """Return what the service stores of a task's files."""
        found = []
        for each in self.wanted:
            if each.on == "success":
                continue
            base = "" if each.is_log else fixed_folder(each.pattern)
            name = base if has_wildcards(each.pattern) else PurePosixPath(base) / PurePosixPath(each.pattern).name
            found.append(
                Upload(
                    pattern=each.pattern,
                    url=urls[self._container(each)],
                    path=str(PurePosixPath(each.path, task, name)),
                    on=f"task{each.on}",
                )
            )
        return found

    def by_tasks(self, urls: dict[str, str]) -> list[dict[str, str]]:
        """Return what tasks store themselves."""
        return [
            {
                "pattern": each.pattern,
                "url": urls[self._container(each)],
                "path": _folder(each.path),
                "on": each.on,
            }
            for each in self.wanted
            if each.on != "completion"
        ]

    def _container(self, output: OutputFile) -> str:
        return output.container or files_container(self.job)


def _folder(path: str) -> str:
    return f"{path}/" if path else ""


def read(output_files: Any, name: str) -> tuple[OutputFile, ...]:
    """Read what a user wants of a job of a name.

    Parameters
    ----------
    output_files : str, OutputFile or sequence of these, optional

    Raises
    ------
    ConfigurationError
    """
    given = [output_files] if isinstance(output_files, str | OutputFile) else output_files or ()
    if not isinstance(given, Sequence):
        raise ConfigurationError(f"output_files={output_files!r}: a pattern, an OutputFile or a list is needed")
    found = []
    for each in given:
        wanted = OutputFile(each) if isinstance(each, str) else each
        if not isinstance(wanted, OutputFile):
            raise ConfigurationError(f"output_files: {each!r} is neither a pattern nor an OutputFile")
        _check(wanted)
        path = str(PurePosixPath(wanted.path or (name if wanted.container else "")))
        path = "" if path == "." else path
        found.append(OutputFile(wanted.pattern, on=wanted.on, container=wanted.container, path=path))
    return tuple(found)


def _check(wanted: OutputFile) -> None:
    said = f"output_files: {wanted.pattern!r}"
    check_choice(f"{said}: on", wanted.on, On)
    for value, what in ((wanted.pattern, "the pattern"), (wanted.path, "the path")):
        if not isinstance(value, str) or not (value.isprintable() or not value) or "\\" in value:
            raise ConfigurationError(f"{said}: {what} {value!r} has a backslash, or is no text that can be printed")
    if PurePosixPath(wanted.path).is_absolute() or ".." in PurePosixPath(wanted.path).parts:
        raise ConfigurationError(f"{said}: the path {wanted.path!r} has to be relative, and without '..'")
    if wanted.container is not None:
        check_container(wanted.container, said)
        if kind_of(wanted.container) is not None:
            raise ConfigurationError(
                f"{said}: the container {wanted.container!r} is joblib_azure's own; use another one"
            )
    parts = PurePosixPath(wanted.pattern).parts
    if wanted.is_log and len(parts) == 2 and any(fnmatch.fnmatchcase(log, parts[1]) for log in _LOGS):
        if wanted.on != "completion":
            raise ConfigurationError(
                f"{said}: what a task writes is whole when it has ended, and not when its calls have: on='completion'"
            )
        return
    problem = ""
    if not parts or wanted.pattern.endswith("/"):
        problem = "names no files; '**' is all of a folder"
    elif wanted.pattern.startswith("/") or ".." in parts:
        problem = "has to stay below the folder in which the calls run, or be '../std*.txt'"
    elif "$" in wanted.pattern:
        problem = "has a variable, which the service would put in, and a task not"
    elif any("**" in part and part != "**" for part in parts):
        problem = "has '**' within a name: as a folder it is any number of folders"
    elif wanted.pattern.count("[") > wanted.pattern.count("]"):
        problem = "has a '[' that is not closed"
    if problem:
        raise ConfigurationError(f"{said}: the pattern {problem}")


def check_against(wanted: Sequence[OutputFile], resources: Resources) -> None:
    """:raises ConfigurationError: a pattern matches what the calls are given: every task would store it again."""
    for each in wanted:
        for path in resources.paths:
            if matches(each.pattern, path):
                raise ConfigurationError(
                    f"output_files: {each.pattern!r} matches {path!r}, which the calls are given: every task would "
                    "store it again. Put what is given, or what is left, into a folder of its own"
                )


def look(wanted: Sequence[OutputFile], blobs: BlobService) -> None:
    """:raises ConfigurationError: a container is not there."""
    for name in {each.container for each in wanted if each.container is not None}:
        if find_container(blobs, name) is None:
            raise ConfigurationError(
                f"output_files: the storage account has no container {name!r}; `az storage container create` makes it"
            )
