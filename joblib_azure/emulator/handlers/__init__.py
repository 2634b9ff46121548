"""One handler per REST operation: checks what the description cannot, asks the engine, shapes the answer."""

from . import account, files, jobs, nodes, pools, schedules, tasks

__all__ = ["account", "files", "jobs", "nodes", "pools", "schedules", "tasks"]
