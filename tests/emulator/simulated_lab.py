"""Executors for simulated nodes: what a command line says is done, without a process."""

from __future__ import annotations

import json
import shlex
from typing import Any


async def obey(task: Any) -> int:
    """Do what the words of a command line say, one after the other."""
    words = shlex.split(task.command_line)
    while words:
        word = words.pop(0)
        if word == "sleep":
            await task.sleep(float(words.pop(0)))
        elif word == "exit":
            return int(words.pop(0))
        elif word == "raise":
            raise RuntimeError("as it was told")
        elif word == "expect":
            return 0 if _seen(task) == json.loads(words.pop(0)) else 3
    return 0


def _seen(task: Any) -> dict[str, Any]:
    names = ("AZ_BATCH_TASK_ID", "OF_THE_JOB", "OF_THE_TASK")
    return {
        "variables": {name: task.environment[name] for name in names if name in task.environment},
        "files": [dict(each) for each in task.resource_files],
    }


def blocking(task: Any) -> int:
    """No executor: it is not asynchronous."""
    return 0
