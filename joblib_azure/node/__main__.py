"""The command lines of a node: a Batch task's, its runner's, and the job preparation's."""

from __future__ import annotations

import gc
import sys


def main(argv: list[str]) -> int:
    """Run a Batch task, a runner where its two pipes are given, or the job's preparation."""
    if argv[:1] == ["prepare"]:
        from .prepare import main as prepare

        return prepare(argv[1:])
    gc.disable()  # nothing that imports make is garbage, and to look for it takes a tenth of their time
    if argv[:1] == ["runner"]:
        from .runner import main as runner

        return runner(int(argv[1]), int(argv[2]))
    from .task import main as task

    return task()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
