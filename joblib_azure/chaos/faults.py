"""The classes of fault: their names, where they strike, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Service = Literal["batch", "storage"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A class of fault.

    Parameters
    ----------
    name : str
    services : tuple of str
        Whose requests it strikes: ``batch``, ``storage``. Empty for what happens to nodes, jobs, pools and servers.
    what : str
    """

    name: str
    services: tuple[Service, ...] = ()
    what: str

    @property
    def on_the_wire(self) -> bool:
        """Whether it strikes requests."""
        return bool(self.services)


_BATCH: tuple[Service, ...] = ("batch",)
_STORAGE: tuple[Service, ...] = ("storage",)
_BOTH: tuple[Service, ...] = ("batch", "storage")

#: All of them, by their names.
FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault(name="throttled", services=_BATCH, what="429 TooManyRequests with Retry-After"),
        Fault(name="throttled-bare", services=_BATCH, what="429 TooManyRequests without Retry-After"),
        Fault(name="busy", services=_BOTH, what="503 ServerBusy with Retry-After"),
        Fault(name="busy-bare", services=_BOTH, what="503 ServerBusy without Retry-After"),
        Fault(name="internal-error", services=_BOTH, what="500 InternalError or OperationTimedOut"),
        Fault(name="reset", services=_BOTH, what="the connection is reset before the request arrives"),
        Fault(name="lost-answer", services=_BOTH, what="a write takes effect, and its answer never arrives"),
        Fault(name="time-out", services=_BOTH, what="no answer within the client's time"),
        Fault(name="slow", services=_BOTH, what="an answer that arrives in drops"),
        Fault(name="truncated", services=_BOTH, what="an answer that breaks off in its middle"),
        Fault(name="stale", services=_BATCH, what="a listing, or counts, as they were some time ago"),
        Fault(name="sas-expired", services=_STORAGE, what="403: the signature is not valid in its time frame"),
        Fault(name="quota", services=_BATCH, what="409 ActiveJobAndScheduleQuotaReached when a job is created"),
        Fault(name="clock-skew", what="the services' clock is minutes off"),
        Fault(name="preempted", what="a spot node is preempted and comes back"),
        Fault(name="rebooted", what="a node is rebooted"),
        Fault(name="unusable", what="a node becomes unusable and is repaired"),
        Fault(name="lost", what="the service loses contact with a node, on which tasks go on"),
        Fault(name="start-task-failed", what="a node is rebooted and its start task fails"),
        Fault(name="preparation-failed", what="a try of the job preparation task fails"),
        Fault(name="task-killed", what="a task is terminated, or its process killed"),
        Fault(name="disk-full", what="a node's disk is full, and so it becomes unusable"),
        Fault(name="supervisor-killed", what="a node's supervisor of warm runners is killed"),
        Fault(name="runner-killed", what="a runner or one of its workers is killed"),
        Fault(name="pool-deleted", what="somebody else deletes the pool"),
        Fault(name="job-ended", what="somebody else terminates the job"),
        Fault(name="azurite-restarted", what="storage is stopped and started again"),
    )
}
