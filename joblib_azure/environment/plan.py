"""What the nodes get for one session: node code, and the environment of a lock unless they have one.

::

    plan(config, account)             nothing is created yet; whatever cannot be is an error here
      └─► EnvironmentPlan ─ ship ─► storage: node code, files that nodes cannot fetch, the description
                          ─ look ─► the user's modules as they are now (with every Parallel call)

Where an index is open to the nodes they fetch packages by themselves, in parallel and from nearby. What is on this
machine, behind credentials, or wanted offline, the client ships, once per storage account and content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shlex
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..codec import Buffer
from ..config import AccountConfig, ClusterConfig
from ..errors import PackagesError
from ..node.prepare import ARCHIVE, CODE, DESCRIPTION, ENVIRONMENT, PUBLICATION
from ..service import BlobService, TaskSpec
from ..storage import FILES, archive_container, stale, touch_container
from .code import node_code
from .indexes import read_indexes
from .installed import distributions
from .lock import LockedFile, digest_of, resolve
from .obtain import certificates, is_foreign, node_platform, obtain, python_archive
from .overlay import Overlay
from .packages import explicit_roots, loaded_files, want
from .usercode import UserCode, find_user_code

logger = logging.getLogger(__name__)

#: Where the node code is unpacked in the preparation's folder, and the blob of an environment's archive.
_UNPACKED, _ARCHIVE = "joblib_azure_unpacked", "environment.tar.gz"
#: What the job's environment settings hold and no process that runs others' code may have, in the order in which the
#: task reads them (`node.settings`).
_SECRETS = ("JOBLIB_AZURE_KEY", "JOBLIB_AZURE_INPUTS", "JOBLIB_AZURE_OUTPUTS")
#: Runs the task's client from the folder of the node code, without the package around it.
_CLIENT = "import sys; sys.path.append(sys.argv[1] + '/joblib_azure/node'); from client import main; main()"
#: Runs under whatever Python the node has: the archive, the folder for it, and pairs of a path and a SHA-256. One
#: process, since each costs a node's first call as much as all that it does here.
_PREPARE = """
import hashlib, runpy, sys, zipfile
archive, folder = sys.argv[1:3]
for path, name in zip(sys.argv[3::2], sys.argv[4::2]):
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != name:
            sys.exit("joblib_azure: " + path + " is not what the client stored; nothing of it was run")
with zipfile.ZipFile(archive) as code:
    code.extractall(folder)
sys.argv = [folder, "prepare"]
runpy.run_path(folder, run_name="__main__")
"""


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The packages of an environment, and what else is needed to make it."""

    digest: str
    python: str
    files: tuple[LockedFile, ...]
    uv: LockedFile
    certificates: LockedFile | None
    python_archive: LockedFile | None
    offline: bool
    interpreters: tuple[str, ...]  #: where nodes find the client's Python, beside their own command
    node_environment: dict[str, str] = field(repr=False)

    @property
    def shipped(self) -> list[LockedFile]:
        """What goes through storage."""
        others = (self.uv, self.certificates, self.python_archive)
        return [file for file in (*self.files, *others) if file is not None and file.path]


class EnvironmentPlan:
    """What the nodes of one session get.

    Parameters
    ----------
    command : str
        What starts Python on a node.
    lock : Lock or None
        None where the nodes have everything already.
    overlay : Overlay
        The user's own modules.
    elsewhere : frozenset of str
        Distributions whose version on the nodes is the user's own choice.
    publishes : bool
        Whether there are other nodes that an archive of the environment would serve.
    warm : bool
        Whether nodes keep warm runners.
    """

    def __init__(
        self,
        command: str,
        lock: Lock | None,
        overlay: Overlay,
        elsewhere: frozenset[str] = frozenset(),
        *,
        publishes: bool = False,
        warm: bool = False,
    ) -> None:
        #: Whether this session publishes the environment; known once it was shipped.
        self.publishes = publishes
        #: Whether nodes keep warm runners.
        self.warm = warm
        self._later: list[TaskSpec] = []
        self._shipped: dict[str, str] = {}
        self._command = command
        self.lock = lock
        self._overlay = overlay
        self.elsewhere = elsewhere

    def __repr__(self) -> str:
        return f"<EnvironmentPlan {self.digest}>"

    @property
    def digest(self) -> str:
        """The lock's name; ``none`` where there is no lock."""
        return self.lock.digest if self.lock is not None else "none"

    @property
    def preparation_command(self) -> str:
        """Command line of the job preparation task, once the plan was shipped.

        It runs nothing that is not what the client stored: what comes through storage is checked against the names
        that come through Batch.
        """
        run = shlex.quote(self._command)
        files = " ".join(shlex.quote(word) for pair in self._shipped.items() for word in pair)
        # Building a source distribution runs its code, which has no need of the job's secrets.
        script = f"unset {' '.join(_SECRETS)}; exec {run} -c {shlex.quote(_PREPARE)} {ARCHIVE} {_UNPACKED} {files}"
        return f"/bin/sh -c {shlex.quote(script)}"

    @property
    def task_command(self) -> str:
        """Command line of every task: the client of the node's warm runners, which does without where there are none.

        The secrets reach Python on its standard input: what it was started with, other processes of its user can
        read, those of its calls among them.
        """
        names = " ".join(f"${name}" for name in _SECRETS)
        # Imported, since the program that an interpreter is given is compiled each time.
        client = f"-I -S -c {shlex.quote(_CLIENT)} {self._program}"
        run = f"exec {self._python} {client if self.warm else self._program}"
        script = f'secrets="{names}"; unset {" ".join(_SECRETS)}; {run} <<END\n$secrets\nEND'
        return f"/bin/sh -c {shlex.quote(script)}"

    @property
    def _python(self) -> str:
        # Batch runs a command line without a shell, so it names one for the variables.
        if self.lock is not None:
            return f'"$AZ_BATCH_JOB_PREP_WORKING_DIR/{ENVIRONMENT}/bin/python"'
        return shlex.quote(self._command)

    @property
    def _program(self) -> str:
        return f'"$AZ_BATCH_JOB_PREP_WORKING_DIR/{CODE}"'

    def later_tasks(self) -> list[TaskSpec]:
        """Return what is to be added once, behind the job's first tasks: the publication of the environment."""
        tasks, self._later = self._later, []
        return tasks

    def _publication(self, lock: Lock, blobs: BlobService, container: str, lifetime: timedelta) -> list[TaskSpec]:
        """Return the task that stores the environment's archive; none where it is there, or nobody would take it."""
        archives = archive_container(lock.digest)
        self.publishes &= all(item.name != _ARCHIVE for item in blobs.blobs(archives, _ARCHIVE))
        if not self.publishes:
            return []
        # A container a lock: the SAS reads and creates, so that a node can neither change what is there nor
        # put anything under another lock's name.
        base, _, token = blobs.container_url(archives, "rc", lifetime).partition("?")
        description = {
            "digest": lock.digest,
            "python": lock.python,
            "modules": loaded_files(file.name for file in lock.files),
            "archive": f"{base}/{_ARCHIVE}?{token}",
            "claim": f"{base}/claim?{token}",
        }
        data = json.dumps(description).encode()
        blobs.put(container, PUBLICATION, data)
        run = f"exec {self._python} {self._program} prepare publish"
        command = f"/bin/sh -c {shlex.quote(run)}"
        variables = {"JOBLIB_AZURE_PUBLICATION": hashlib.sha256(data).hexdigest()}
        return [TaskSpec(id="publish-environment", command=command, environment=variables, display_name="environment")]

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables of the job: the package knows by it that it is on a node."""
        return {"JOBLIB_AZURE_NODE": "1"}

    def ship(self, blobs: BlobService, container: str, lifetime: timedelta) -> dict[str, str]:
        """Store what the nodes need and return the resource files of the job preparation task.

        Parameters
        ----------
        blobs : BlobService
        container : str
            The job's own, for what carries tokens.
        lifetime : timedelta
            For which nodes may join the job.

        Returns
        -------
        dict
            Path in the preparation task's folder to URL.
        """
        code = node_code()
        blobs.put(container, code.name, code.data)
        files = {ARCHIVE: blobs.blob_url(container, code.name, lifetime)}
        self._shipped = {ARCHIVE: hashlib.sha256(code.data).hexdigest()}
        if self.lock is not None:
            data = json.dumps(self._describe(self.lock, blobs, lifetime)).encode()
            blobs.put(container, DESCRIPTION, data)
            files[DESCRIPTION] = blobs.blob_url(container, DESCRIPTION, lifetime)
            self._shipped[DESCRIPTION] = hashlib.sha256(data).hexdigest()
            self._later = self._publication(self.lock, blobs, container, lifetime)
        return files

    def _describe(self, lock: Lock, blobs: BlobService, lifetime: timedelta) -> dict[str, Any]:
        archives = archive_container(lock.digest)
        if not blobs.create_container(archives):
            touch_container(blobs, archives)
        shipped = lock.shipped
        if shipped:
            blobs.create_container(FILES)
            stored = {item.name: item.modified for item in blobs.blobs(FILES, "")}
            for file in shipped:
                name = _blob_name(file)
                # What is used is touched, and is stored again where it was collected at this very moment.
                if name in stored and (not stale(stored[name]) or blobs.touch(FILES, name)):
                    continue
                logger.info("storing %s for the nodes", file.file)
                blobs.put(FILES, name, Path(file.path).read_bytes(), overwrite=False)

        def described(file: LockedFile | None) -> dict[str, Any] | None:
            if file is None:
                return None
            url = blobs.blob_url(FILES, _blob_name(file), lifetime) if file.path else file.url
            values = {"name": file.name, "version": file.version, "file": file.file, "sha256": file.sha256}
            return {**values, "url": url, "shipped": bool(file.path)}

        base, _, token = blobs.container_url(archives, "r", lifetime).partition("?")
        return {
            "digest": lock.digest,
            "python": lock.python,
            "commands": [self._command, *lock.interpreters],
            "packages": [described(file) for file in lock.files],
            "uv": described(lock.uv),
            "certificates": described(lock.certificates),
            "python_archive": described(lock.python_archive),
            "offline": lock.offline,
            "uv_environment": lock.node_environment,
            "archive": f"{base}/{_ARCHIVE}?{token}",
        }

    def look(self) -> tuple[list[Buffer], UserCode]:
        """Return the archives of the user's modules as they are now.

        Raises
        ------
        PackagesError
        """
        return self._overlay.look()

    def lacks(self, code: UserCode) -> set[str]:
        """Return the distributions that the user's code has come to import and the lock does not have."""
        if self.lock is None:
            return set()
        return explicit_roots(code) - {file.name for file in self.lock.files} - self.elsewhere


def plan(config: ClusterConfig, account: AccountConfig | None = None) -> EnvironmentPlan:
    """Find out what the nodes need and whether they can have it; nothing is created.

    Parameters
    ----------
    config : ClusterConfig
    account : AccountConfig, optional
        Its GitHub token reads private repositories.

    Raises
    ------
    PackagesError
    """
    settings, packages = config.environment, config.python_packages
    target = node_platform(config.vm_size)
    foreign = is_foreign(target)
    projects = [Path(project).expanduser() for project in packages.editable]
    overlay = Overlay(projects, settings.exclude, foreign_platform=foreign)
    more = packages.pypi or packages.git or packages.wheels or packages.conda or packages.editable
    # Emulated nodes that run this very Python have what the client has.
    same = target is None and config.python == sys.executable and not more
    if settings.mode == "none" or config.container_image is not None or same:
        return EnvironmentPlan(config.python, None, overlay, warm=config.warm)
    here = "{}.{}".format(*sys.version_info)
    python = settings.python or here
    if python != here:
        raise PackagesError(
            f"environment.python is {python} and this is Python {here}: calls are pickled code, which one minor "
            f"version cannot give to another. Run the client with Python {python}, or leave the setting out"
        )
    indexes = read_indexes(config)
    wanted = want(config, account, find_user_code(frozenset(settings.exclude)), indexes)
    found = resolve(
        list(wanted.requirements.values()),
        sorted(wanted.constraints.values()),
        sorted(wanted.excludes),
        python=python,
        platform=target,
        indexes=indexes,
    )
    files = obtain(found, indexes, offline=settings.offline, foreign=foreign)
    uv = next(file for file in files if file.name == "uv")
    if "uv" not in wanted.requirements:
        files = [file for file in files if file.name != "uv"]
    lock = Lock(
        digest=digest_of(files, python, target or f"{sys.platform}-{platform.machine()}"),
        python=python,
        files=tuple(files),
        uv=uv,
        certificates=certificates(indexes),
        # Emulated nodes are this machine, which has the client's Python.
        python_archive=python_archive(python, target, indexes) if settings.offline and target else None,
        interpreters=() if target else (getattr(sys, "_base_executable", sys.executable),),
        offline=settings.offline,
        node_environment={} if settings.offline else indexes.node_environment(),
    )
    logger.debug("environment %s: %s", lock.digest, ", ".join(f"{file.name} {file.version}" for file in files))
    known = distributions()
    elsewhere = {file.name for file in files if file.name in known and file.version != known[file.name].version}
    elsewhere |= wanted.excludes
    publishes = config.nodes > 1
    return EnvironmentPlan(config.python, lock, overlay, frozenset(elsewhere), publishes=publishes, warm=config.warm)


def _blob_name(file: LockedFile) -> str:
    return f"{file.sha256}/{file.file}"
