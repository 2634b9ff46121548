"""Autoscale of the account's pools: samples every 30 s, evaluations at their intervals, targets for `allocation`.

    account ─► sample ─► Pool.histories ─► evaluate (autoscale) ─► autoScaleRun, targets ─► allocation.retarget

With a `clock_rate` all intervals pass that much faster; the time of day does not.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import autoscale, errors, times
from .autoscale.samples import PERIOD
from .state import AutoscaleState, Pool

if TYPE_CHECKING:
    from .engine import Engine

DEFAULT_INTERVAL = timedelta(minutes=15)
LEAST_INTERVAL, MOST_INTERVAL = timedelta(minutes=5), timedelta(hours=168)
#: Documented: enabling, or changing what is enabled, once in this time a pool.
_BETWEEN_ENABLES = timedelta(seconds=30)
_NOT_USABLE = ("preempted", "unusable", "starttaskfailed", "offline", "unknown", "deallocating", "deallocated")


class Autoscaler:
    """Samples pools, and evaluates the formulas of those that have one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rate = engine.options.clock_rate
        self._loop = asyncio.get_running_loop()
        self._tick = self._loop.call_later(self._seconds(PERIOD), self._sample_all)

    def _seconds(self, interval: timedelta) -> float:
        return interval.total_seconds() / self._rate

    def close(self) -> None:
        """Sample and evaluate nothing any more."""
        self._tick.cancel()
        for pool in self._engine.account.pools.values():
            self.disable(pool)

    # -- samples ------------------------------------------------------------------------------------------------------

    def _sample_all(self) -> None:
        self._tick = self._loop.call_later(self._seconds(PERIOD), self._sample_all)
        now = times.now()
        tasks = {pool_id: [0, 0, 0, 0] for pool_id in self._engine.account.pools}
        for job in self._engine.account.jobs.values():
            counts = tasks.get(job.pool_id.lower())
            if counts is None:
                continue
            if job.state == "active":
                counts[0] += job.counts["active"][0] - len(job.blocked)
            counts[1] += job.counts["running"][0] + job.counts["preparing"][0]
            counts[2] += job.counts["succeeded"][0]
            counts[3] += job.counts["failed"][0]
        for pool_id, pool in self._engine.account.pools.items():
            active, running, succeeded, failed = tasks[pool_id]
            measured = {
                "$ActiveTasks": active,
                "$RunningTasks": running,
                "$PendingTasks": active + running,
                "$SucceededTasks": succeeded,
                "$FailedTasks": failed,
                **_nodes(pool),
            }
            for name, value in measured.items():
                pool.histories[name].add(now, value)

    # -- formulas -----------------------------------------------------------------------------------------------------

    @staticmethod
    def parse(text: str) -> autoscale.Formula:
        """Return a formula that is well formed.

        Raises
        ------
        BatchError
            400 `AutoScalingFormulaSyntaxError`, `AutoScalingFormulaTooLong`.
        """
        try:
            formula = autoscale.parse(text)
            autoscale.check(formula)
        except autoscale.SyntaxProblem as exc:
            raise errors.invalid_formula(exc.code, exc.text, str(exc)) from None
        return formula

    def start(self, pool: Pool, formula: autoscale.Formula, interval: timedelta) -> None:
        """Have a formula set the targets of a pool from now on, and at once."""
        self.disable(pool)
        pool.autoscale = AutoscaleState(formula=formula, interval=interval)
        self._run(pool, pool.autoscale)

    def resume(self, pool: Pool, formula: autoscale.Formula, interval: timedelta, last: dict[str, Any] | None) -> None:
        """Have a pool that was restored go on with its formula, from the next interval on: there are no samples yet."""
        state = pool.autoscale = AutoscaleState(formula=formula, interval=interval, run=last)
        state.schedule = self._loop.call_later(self._seconds(interval), self._run, pool, state)

    def enable(self, pool: Pool, formula: autoscale.Formula | None, interval: timedelta | None) -> None:
        """Do what a request to enable autoscale, or to change what is enabled, asks for.

        Raises
        ------
        BatchError
            400 where there is nothing to go by, 409 while a resize by hand is under way, 503 within 30 s of the last.
        """
        state = pool.autoscale
        if formula is None and state is None:
            raise errors.invalid_autoscale("Autoscale is disabled: an autoScaleFormula is needed to enable it.")
        if formula is None and interval is None:
            raise errors.invalid_autoscale("Specify autoScaleFormula, autoScaleEvaluationInterval or both.")
        if state is None and pool.allocation_state != "steady":
            raise errors.pool_being_resized()
        now = self._loop.time()
        if pool.autoscale_enabled is not None and now - pool.autoscale_enabled < self._seconds(_BETWEEN_ENABLES):
            raise errors.too_many_enables()
        pool.autoscale_enabled = now
        pool.touch()
        if state is None or interval is not None:
            given = formula or (state.formula if state is not None else None)
            if given is not None:
                self.start(pool, given, interval or DEFAULT_INTERVAL)
        elif formula is not None:
            state.formula = formula
            self._evaluate(pool, state)  # its schedule goes on

    @staticmethod
    def disable(pool: Pool) -> None:
        """Leave the targets as they are from now on."""
        if pool.autoscale is not None and pool.autoscale.schedule is not None:
            pool.autoscale.schedule.cancel()
        pool.autoscale = None

    def _run(self, pool: Pool, state: AutoscaleState) -> None:
        if pool.state == "active" and pool.autoscale is state:
            state.schedule = self._loop.call_later(self._seconds(state.interval), self._run, pool, state)
            self._evaluate(pool, state)

    def _evaluate(self, pool: Pool, state: AutoscaleState) -> None:
        outcome = self.outcome(pool, state.formula)
        state.run = run(outcome)
        if outcome.problem is None:
            self._engine.allocation.retarget(pool, outcome.dedicated, outcome.spot, outcome.option)

    def outcome(self, pool: Pool, formula: autoscale.Formula) -> autoscale.Outcome:
        """What a formula comes to for a pool now; nothing is done about it."""
        samples = autoscale.Samples(now=times.now(), histories=pool.histories, rate=self._rate)
        return autoscale.evaluate(
            formula, samples, dedicated=pool.target_dedicated, spot=pool.target_spot, current=_nodes(pool)
        )


def run(outcome: autoscale.Outcome) -> dict[str, Any]:
    """An `autoScaleRun`."""
    found: dict[str, Any] = {"timestamp": times.iso(times.now()), "results": outcome.results}
    if outcome.problem is not None:
        found["error"] = outcome.problem.shape()
    return found


def _nodes(pool: Pool) -> dict[str, float]:
    nodes = list(pool.nodes.values())
    return {
        "$TaskSlotsPerNode": pool.slots,
        "$CurrentDedicatedNodes": sum(node.dedicated for node in nodes),
        "$CurrentLowPriorityNodes": sum(not node.dedicated for node in nodes),
        "$PreemptedNodeCount": sum(node.state == "preempted" for node in nodes),
        "$UsableNodeCount": sum(node.state not in _NOT_USABLE for node in nodes),
    }
