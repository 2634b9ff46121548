"""The command line of a Batch task, and that of the runner which the task starts."""

from __future__ import annotations

import sys


def main(argv: list[str]) -> int:
    """Run a Batch task, or a runner where its two pipes are given."""
    if argv[:1] == ["runner"]:
        from .runner import main as runner

        return runner(int(argv[1]), int(argv[2]))
    from .task import main as task

    return task()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
