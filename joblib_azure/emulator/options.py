"""How the emulated account behaves, where that is a choice: quotas, faults to provoke, timing, who may do what.

The defaults are Azure's own. `BatchEmulator` takes these as keywords, the command line as flags of the same names.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from . import tls
from .executors import name_of
from .latency import PROFILES, most_to_a_node


def _option(text: str, default: Any = None) -> Any:
    if isinstance(default, (int, float, str, tuple)) or default is None:
        return field(default=default, metadata={"help": text})
    return field(default_factory=lambda: default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The behaviour of an account; what each field does is its help text on the command line.

    Raises
    ------
    ValueError
        For a number out of range, and for what is none where one belongs.
    """

    active_job_quota: int = _option("jobs that may be active at a time (409 ActiveJobAndScheduleQuotaReached)", 300)
    pool_quota: int = _option("pools that the account may have (409 PoolQuotaReached)", 100)
    dedicated_core_quota: int | None = _option(
        "cores of all dedicated nodes; nodes beyond it end in the resize error AccountCoreQuotaReached"
    )
    spot_core_quota: int | None = _option(
        "cores of all spot nodes; nodes beyond it end in the resize error AccountLowPriorityCoreQuotaReached"
    )
    failing_sizes: Mapping[str, int] = _option(
        "VM size and the nodes of it that a pool gets; more end in the resize error AllocationFailed", {}
    )
    timing_out_sizes: Mapping[str, int] = _option(
        "VM size and the nodes of it that a pool gets; more end, after the resize timeout, in AllocationTimedout", {}
    )
    failing_start_tasks: int = _option("nodes, the first that boot, whose start task fails with exit code 1", 0)
    unusable_nodes: int = _option("nodes, the first that boot, that become unusable", 0)
    boot_seconds: float = _option("seconds that a node takes to boot, before its start task", 0.0)
    dispatch_seconds: float = _option(
        "seconds between the moment when a task gets its slot and its arrival on the node; it is active until then", 0.0
    )
    pool_deletion_seconds: float = _option("seconds, at least, that a pool stays in the state deleting", 0.0)
    clock_rate: float = _option(
        "how many times faster than Azure's the service's own intervals pass: autoscale samples (30 s, 1 min late), "
        "look-back intervals of formulas, evaluation intervals, the 30 s between two enablings, resize timeouts, "
        "latencies (see latency). The "
        "time of day stays the clock's, in formulas too",
        1.0,
    )
    latency: str = _option(
        f"how slow the service is: {' or '.join(PROFILES)}. azure draws, between published bounds, how long nodes take "
        "to be allocated and to boot, tasks to start and their ends to be known, task counts to be right and requests "
        "to be answered; all of it on the service's clock",
        "none",
    )
    latency_seed: int = _option("what latencies are drawn with: the same number draws the same", 0)
    executor: str | None = _option(
        "FILE.py:NAME or MODULE:NAME of an asynchronous function that runs tasks in place of processes, so that nodes "
        "are simulated (see the module simulated)"
    )
    refuse_shared_key: bool = _option("an account that takes Entra tokens only", False)
    token_signer: str | None = _option(
        "PEM file of the certificate, or public key, that Entra tokens must be signed with; without it none is taken"
    )
    token_issuer: str | None = _option("the issuer (claim iss) that Entra tokens must have; any by default")
    token_audience: str = _option(
        "the audience (claim aud) that Entra tokens must have", "https://batch.core.windows.net/"
    )
    job_submitters: tuple[str, ...] = _option(
        "object id (claim oid) of somebody with the role Azure Batch Job Submitter: uses pools, may not change them", ()
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if _is_number(each) and not number:
                raise ValueError(f"{each.name} is {value!r}, not a number")
            if number and not 0 <= value < math.inf:
                raise ValueError(f"{each.name} is {value}, below 0" if value < 0 else f"{each.name} is {value}")
        if self.clock_rate <= 0:
            raise ValueError(f"clock_rate is {self.clock_rate}, not above 0")
        if self.latency not in PROFILES:
            raise ValueError(f"latency is {self.latency!r}; known are {', '.join(PROFILES)}")
        for name in ("failing_sizes", "timing_out_sizes"):
            sizes = {size.lower(): int(count) for size, count in getattr(self, name).items()}
            object.__setattr__(self, name, sizes)
        if self.token_signer is not None:
            object.__setattr__(self, "token_signer", os.path.abspath(self.token_signer))
            tls.read_public_key(self.token_signer)
        object.__setattr__(self, "job_submitters", tuple(self.job_submitters))
        if self.executor is not None:
            object.__setattr__(self, "executor", name_of(self.executor))

    @property
    def node_seconds(self) -> float:
        """The most that a node takes until its start task, in seconds of real time."""
        return self.boot_seconds + most_to_a_node(self.latency, self.clock_rate)

    def arguments(self) -> list[str]:
        """The flags that say what differs from the defaults."""
        return list(self._arguments())

    def _arguments(self) -> Iterator[str]:
        default = Options()
        for each in fields(self):
            value = getattr(self, each.name)
            flag = "--" + each.name.replace("_", "-")
            if value == getattr(default, each.name):
                continue
            if isinstance(value, bool):
                yield flag
            elif isinstance(value, Mapping):
                for size, count in value.items():
                    yield from (flag, f"{size}={count}")
            elif isinstance(value, tuple):
                for item in value:
                    yield from (flag, item)
            else:
                yield from (flag, str(value))


def _is_number(option: Field[Any]) -> bool:
    return isinstance(option.default, (int, float)) and not isinstance(option.default, bool)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option."""
    group = parser.add_argument_group("behaviour of the account")
    for each in fields(Options):
        flag, text = "--" + each.name.replace("_", "-"), each.metadata["help"]
        default = getattr(Options(), each.name)
        if isinstance(default, bool):
            group.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, Mapping):
            group.add_argument(flag, action="append", type=_sized, default=[], metavar="SIZE=COUNT", help=text)
        elif isinstance(default, tuple):
            group.add_argument(flag, action="append", default=[], metavar="ID", help=text)
        else:
            kind = float if isinstance(default, float) else int if "quota" in each.name or default == 0 else str
            shown = "" if default is None else " (default: %(default)s)"
            group.add_argument(flag, type=kind, default=default, help=text + shown)


def from_arguments(given: argparse.Namespace) -> Options:
    """What the flags say."""
    values = {each.name: getattr(given, each.name) for each in fields(Options)}
    for name in ("failing_sizes", "timing_out_sizes"):
        values[name] = dict(values[name])
    return Options(**values)


def _sized(text: str) -> tuple[str, int]:
    size, separator, count = text.partition("=")
    if not separator or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not SIZE=COUNT")
    return size, int(count)
