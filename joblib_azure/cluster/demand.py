"""Nodes at once from a pool that scales by itself: a floor behind its formula, until a deadline.

One request raises it (the service evaluates the formula then, and not at the next interval), under the pool's ETag, so
that two clients do not undo each other; a pool takes such a request once in 30 s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ..errors import AuthenticationError, ClusterError, ConflictError, ServiceError
from ..service import PoolService, PoolState
from .floor import Floor, floor_of, with_floor, without_floor
from .waiting import Progress, Teller, Waiting

logger = logging.getLogger(__name__)

#: The service lets autoscale be enabled once in 30 s a pool; a second more for the clocks.
INTERVAL = 31.0
#: Seconds between two tries where the pool is busy with something else.
_RETRY = 2.0
#: Seconds after which a pool that takes no floor is given up: a resize that goes on, or clients that compete.
_PATIENCE = 180.0
#: A floor that ends this much earlier than wanted is good enough: sessions that follow each other need no request.
_SLACK = timedelta(minutes=5)
#: Seconds that `Demand.lower` waits for a floor that is just being raised.
_RAISING = 2.0
#: States of jobs that want no nodes any more.
_OVER = frozenset({"terminating", "completed", "deleting"})


class Demand:
    """Raises the floor of one pool, and lowers it again.

    Parameters
    ----------
    batch : callable
        Returns the service.
    pool : str
    interval : float
        Seconds between two requests.
    """

    def __init__(self, batch: Callable[[], PoolService], pool: str, *, interval: float = INTERVAL) -> None:
        self._batch = batch
        self._pool = pool
        self._interval = interval
        self._lock = threading.Lock()
        self._asked: float | None = None
        # What was written last, and what somebody else had written before.
        self._raised: Floor | None = None
        self._others: Floor | None = None

    def raise_to(
        self,
        dedicated: int,
        spot: int,
        seconds: float,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> PoolState | None:
        """See to it that the pool has these nodes at least, for `seconds` from now.

        Returns
        -------
        PoolState or None
            The pool as it was when the floor was raised; None where nothing had to be done: it has such a floor, has no
            formula, or the wait was cancelled.

        Raises
        ------
        ClusterError
            Where the pool has no nodes and this identity may not raise its floor, or the pool takes no floor in time.
        """
        with self._lock:
            begun, teller = time.monotonic(), Teller(progress)
            while not cancelled():
                pool = self._batch().pool(self._pool)
                if pool.autoscale is None:
                    return None
                now = datetime.now(timezone.utc)
                wanted = Floor(dedicated=dedicated, spot=spot, until=now + timedelta(seconds=seconds))
                there = floor_of(pool.autoscale.formula)
                enough = Floor(dedicated=dedicated, spot=spot, until=wanted.until - min(_SLACK, wanted.until - now) / 2)
                if there is not None and there.covers(enough):
                    return None
                wait = 0.0 if self._asked is None else self._asked + self._interval - time.monotonic()
                if wait > 0:
                    if pool.target_dedicated >= dedicated and pool.target_spot >= spot:
                        return None  # The nodes are there or on their way; their floor can be moved on next time.
                    self._wait(begun, wait, "the service takes another floor once in 30 s", teller, cancelled)
                    continue
                try:
                    self._enable(pool, wanted.together(there, now), there)
                except ConflictError as exc:
                    self._conflict(exc, begun, teller, cancelled)
                    continue
                except AuthenticationError as exc:
                    self._refused(exc, pool)
                    return None
                return pool
        return None

    def lower(self, job: str = "") -> bool:
        """Take off the floor that this object has raised, so that the pool's formula alone decides; tries once.

        It stays where another job is on the pool, which may count on it, and where somebody else has raised it since.

        Parameters
        ----------
        job : str
            That needs it no more.

        Returns
        -------
        bool
            Whether nothing is left of it. Else it ends at its deadline.
        """
        if self._raised is None:
            return True
        # A thread that raises it sees that it is cancelled at its next look. One that stands still, since the process
        # is about to die, does not: then this is the last word.
        turn = self._lock.acquire(timeout=_RAISING)
        try:
            return self._lower(self._raised, job)
        except ServiceError as exc:
            # The service takes such a request once in 30 s, and nobody waits so long for the end of a program.
            logger.info("pool %s: its floor of %s ends by itself: %s", self._pool, self._raised, exc)
            return False
        finally:
            if turn:
                self._lock.release()

    def _lower(self, raised: Floor, job: str) -> bool:
        batch, now = self._batch(), datetime.now(timezone.utc)
        pool = batch.pool(self._pool)
        found = None if pool.autoscale is None else floor_of(pool.autoscale.formula)
        if pool.autoscale is None or found is None or found.until <= now or not raised.covers(found):
            self._raised = None
            return True
        others = [each.id for each in batch.jobs(self._pool) if each.id != job and each.state not in _OVER]
        if others:
            logger.info("pool %s: its floor stays for job %s", self._pool, others[0])
            return False
        formula, rest = pool.autoscale.formula, self._others
        formula = without_floor(formula) if rest is None or rest.until <= now else with_floor(formula, rest)
        batch.enable_autoscale(self._pool, formula, etag=pool.etag)
        self._raised, self._asked = None, time.monotonic()
        logger.info("pool %s: floor of %s taken off", self._pool, raised)
        return True

    def _enable(self, pool: PoolState, floor: Floor, there: Floor | None) -> None:
        if pool.autoscale is None:
            return
        try:
            formula = with_floor(pool.autoscale.formula, floor)
        except ValueError as exc:
            raise ClusterError(str(exc), pool=self._pool) from exc
        before = self._raised, self._others
        if there != self._raised:
            self._others = there
        # As it is read again: to the second. And before it is there: whatever interrupts the request, it may be.
        self._raised = floor_of(formula)
        try:
            self._batch().enable_autoscale(self._pool, formula, etag=pool.etag)
        except ServiceError:
            self._raised, self._others = before
            raise
        self._asked = time.monotonic()
        logger.info("pool %s: floor raised to %s", self._pool, floor)

    def _conflict(self, exc: ConflictError, begun: float, teller: Teller, cancelled: Callable[[], bool]) -> None:
        if time.monotonic() - begun > _PATIENCE:
            raise ClusterError(
                f"the pool takes no floor: {exc.message}; tried for {_PATIENCE:g} s", pool=self._pool
            ) from exc
        if exc.context.get("status") == 412:
            return  # Somebody else changed the pool between our look and our request: look again.
        why = f"the pool cannot take a floor yet ({exc.message.rpartition(': ')[2].rstrip('.')})"
        self._wait(begun, _RETRY, why, teller, cancelled)

    def _wait(self, begun: float, seconds: float, why: str, teller: Teller, cancelled: Callable[[], bool]) -> None:
        end = time.monotonic() + seconds
        now = Waiting(pool=self._pool, doing=why, elapsed=time.monotonic() - begun, timeout=_PATIENCE)
        teller.tell(now)
        while (left := end - time.monotonic()) > 0 and not cancelled():
            time.sleep(min(left, 0.5))

    def _refused(self, exc: AuthenticationError, pool: PoolState) -> None:
        """People may use a pool without the right to change it: then its own formula has to do."""
        if pool.current_nodes == 0:
            raise ClusterError(
                f"pool {self._pool!r} has no nodes, and this identity may not make it have some ({exc.message}). Ask "
                "its owner for nodes (`joblib-azure cluster resize`), or for the right to change the pool",
                pool=self._pool,
            ) from exc
        logger.warning("pool %s: its floor cannot be raised by this identity; its own formula decides", self._pool)
