"""What Linux tells about the processes of a runner, by ``/proc``: nodes have no psutil."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Times that a priority is set which the kernel does not take yet, and seconds between them.
_TRIES, _PAUSE = 15, 0.01


def group_members(group: int) -> list[int]:
    """Return the processes of a process group, those that have ended left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # After the command's name, which may hold anything: state, parent, group.
                state, _, its_group = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    found.append(int(name))
    return found


def resident(pid: int) -> int:
    """Return the bytes of a process in memory; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def set_priority(group: int, nice: int) -> None:
    """Set the priority of all threads of a process group, as far as this user may."""
    for pid in group_members(group):
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)


def set_session_priority(session: int, nice: int) -> None:
    """Set the priority of a session among others, where the kernel groups processes by them.

    There `set_priority` counts within a session only: sched(7), "The autogroup feature".
    """
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{session}/autogroup").write_text(str(nice))
        except BlockingIOError:  # once in 0.1 s, for all who are no administrators
            time.sleep(_PAUSE)
        except OSError:  # there are no such groups, or it has ended
            return
        else:
            return


def free_memory() -> float:
    """Return the part of the node's memory that is available, 0 to 1; 1 where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, KeyError, ValueError):
        return 1.0


def ended(pid: int) -> bool:
    """Tell whether a process has ended, whether or not its parent has taken note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def leave_no_core() -> None:
    """Have this process leave no core file where it crashes: it holds what opens the job's storage."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
