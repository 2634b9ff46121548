"""The command lines of a node: a Batch task's, its runner's, and the job preparation's."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run a Batch task; the job's preparation, a runner, or a supervisor where the arguments say so."""
    if argv[:1] == ["prepare"]:
        from .prepare import main as prepare

        return prepare(argv[1:])
    gc.disable()  # nothing that imports make is garbage, and to look for it takes a tenth of their time
    if argv[:1] == ["runner"]:
        from .runner import main as runner

        return runner(int(argv[1]), int(argv[2]))
    if argv[:1] == ["supervise"]:
        # A daemon is no child of the task that began it, so that it does not end with that; a service stays what
        # systemd has started.
        if argv[2:] and os.fork():
            return 0
        from .supervisor import main as supervise

        return supervise(Path(sys.argv[0]), json.loads(argv[1]), [int(fd) for fd in argv[2:]])
    from .task import main as task

    return task()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
