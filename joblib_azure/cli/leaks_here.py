"""What local clusters have left on this machine: processes that nobody ends any more, and folders without a cluster.

A cluster's guard, or its emulator, ends all of its processes; where both are gone, what still carries the cluster's run
id was left behind (both were killed, and their client with them). Other users' processes are not looked at.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from ..errors import LocalClusterError
from ..local import guard
from .leaks import Findings, Leak

#: Seconds that a cluster which is just ending may take for its processes: it is looked at again after them.
_ENDING = 10.0
#: Seconds after which a folder that no process belongs to was not just made.
_YOUNG = 60.0
_FOLDER = re.compile(r"joblib_azure-([0-9a-f]{32})")
_EMULATOR, _GUARD = "joblib_azure.emulator", os.path.join("joblib_azure", "local", "guard.py")


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    command: list[str]
    run_id: str
    begun: float


def look_here(found: Findings) -> None:
    """Add what local clusters have left on this machine."""
    try:
        import psutil  # noqa: F401
    except ImportError:  # of the extra [local], without which there was no cluster
        return
    orphans = _orphans()
    if orphans:
        time.sleep(_ENDING)
        again = _orphans()
        orphans = {run_id: again[run_id] for run_id in orphans if run_id in again}
    for run_id, processes in orphans.items():
        named = ", ".join(str(process.pid) for process in processes[:8])
        found.leaks.append(
            Leak(
                kind="processes",
                name=run_id,
                why=f"{_number(processes)} of a local cluster whose guard and emulator are gone ({named})",
                since=datetime.fromtimestamp(max(process.begun for process in processes), timezone.utc),
                removal="kill the processes",
                remove=partial(_kill, run_id),
            )
        )
    for folder, run_id in _folders():
        changed = folder.stat().st_mtime
        if time.time() - changed < _YOUNG or (run_id not in orphans and guard.pids_of(run_id)):
            continue
        found.leaks.append(
            Leak(
                kind="folder",
                name=str(folder),
                why="of a local cluster that is not there any more",
                since=datetime.fromtimestamp(changed, timezone.utc),
                removal="remove the folder",
                bytes=_size(folder),
                remove=partial(_remove, folder, run_id),
            )
        )


def _orphans() -> dict[str, list[_Process]]:
    """Return the processes of clusters that neither a guard nor an emulator looks after, by their run ids.

    Only of clusters whose folder is there: an emulator that somebody has started by himself has none, nor its tasks.
    """
    known = {run_id for _, run_id in _folders()}
    if not known:
        return {}
    processes = {process.pid: process for process in _processes()}
    keepers = {pid for pid, process in processes.items() if _looks_after(process.command)}
    carriers: dict[str, list[_Process]] = {}
    kept: set[str] = set()
    for process in processes.values():
        if process.run_id in known:
            carriers.setdefault(process.run_id, []).append(process)
            if keepers & set(_line(process.pid, processes)):
                kept.add(process.run_id)
    return {run_id: found for run_id, found in carriers.items() if run_id not in kept}


def _processes() -> Iterator[_Process]:
    """Yield this user's processes."""
    import psutil

    mine = os.getuid() if hasattr(os, "getuid") else None
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                if (mine is not None and process.uids().real != mine) or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                yield _Process(
                    process.pid,
                    process.ppid(),
                    process.cmdline(),
                    process.environ().get(guard.RUN_ID_VARIABLE, "").removesuffix(guard.HOST_SUFFIX),
                    process.create_time(),
                )
        except psutil.Error:  # gone meanwhile
            continue


def _line(pid: int, processes: Mapping[int, _Process]) -> Iterator[int]:
    """Yield a process and those that it comes from."""
    seen: set[int] = set()
    while pid in processes and pid not in seen:
        seen.add(pid)
        yield pid
        pid = processes[pid].parent


def _looks_after(command: Sequence[str]) -> bool:
    # The guard is run by its path, which is another one for each environment.
    return _EMULATOR in command or any(part.endswith(_GUARD) for part in command[:4])


def _number(processes: Collection[object]) -> str:
    return f"{len(processes)} process{'' if len(processes) == 1 else 'es'}"


def _kill(run_id: str) -> None:
    if run_id not in _orphans():
        return  # they have ended meanwhile, or somebody looks after them
    left = guard.kill_all(run_id)
    if left:
        raise LocalClusterError(f"{_number(left)} could not be killed: {', '.join(map(str, sorted(left)))}")


def _folders() -> Iterator[tuple[Path, str]]:
    for folder in sorted(Path(tempfile.gettempdir()).glob("joblib_azure-*")):
        named = _FOLDER.fullmatch(folder.name)
        if named is None or folder.is_symlink() or not folder.is_dir():
            continue
        if not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid():
            yield folder, named[1]


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _remove(folder: Path, run_id: str) -> None:
    if guard.pids_of(run_id):
        raise LocalClusterError(f"{folder} is used: processes of its cluster run")
    guard.remove_folder(folder)
    if os.path.lexists(folder):
        raise LocalClusterError(f"{folder} could not be removed")
