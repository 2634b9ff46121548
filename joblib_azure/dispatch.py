"""How delayed calls get from the user's generator to `submit`, beyond what joblib's ``pre_dispatch`` brings.

joblib dispatches ``2 * n_jobs`` calls before it looks at results and one chunk for each that completes: on a
pool that is a trickle, there is nothing to bundle. A wider ``pre_dispatch`` would block the caller while a
slow generator fills it. So for the default ``pre_dispatch`` the first call alone is dispatched by the caller,
and a `Pump` dispatches the rest on a thread of its own, as much as the planner wants::

    user's generator ──next()── pump thread, no lock held ──► buffer ──► Parallel.dispatch_one_batch ──► submit

The user's generator is iterated by one thread at a time and never under joblib's lock, so that a generator
that sleeps delays no result. An explicit ``pre_dispatch`` is joblib's alone.

This is the package's one module that touches attributes of `joblib.Parallel` without a public name; a test
runs it against joblib 1.5 and the newest.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

#: joblib's own default and, spelled without blanks, scikit-learn's: the only one that is widened.
DEFAULT_PRE_DISPATCH = "2*n_jobs"
#: ``verbose`` from which on joblib tells how it batches.
_TALKATIVE = 10
#: Seconds that the pump gathers calls before it hands over what it has; a slow generator's calls go one by one.
_GATHER = 0.005
#: Calls that are gathered at most for one hand-over: joblib's lock is held while they are sliced.
_MOST = 1000
#: The same where each is a chunk of its own: what lives for longer is taken by Python's collector for what stays, and
#: is gone through by it again and again.
_FEW = 100
#: Arguments of a call whose types are a part of its name.
_NAMED = 4
#: Seconds between two questions whether more is wanted, where nobody said so; a safety net, not the way.
_PATIENCE = 0.25


def describe_function(batch: Any) -> str:
    """Return what a ``BatchedCalls`` calls first: the function's name, through partials and wrappers, and its types.

    By this name the session remembers what a call costs. The types of the arguments belong to it, since functions
    such as scikit-learn's ``_fit_and_score`` take as long as the estimator that they are given.
    """
    function, args = batch.items[0][:2]
    for _ in range(10):
        inner = getattr(function, "func", None) or getattr(function, "function", None)
        if not callable(inner):
            break
        function = inner
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    types = ", ".join(type(argument).__name__ for argument in args[:_NAMED])
    return f"{getattr(function, '__module__', None) or '?'}.{name}({types})"


def speaker(parallel: Any) -> Callable[[str], object] | None:
    """Return what says something in joblib's manner, where the Parallel is verbose enough for its batch sizes."""
    return parallel._print if parallel.verbose >= _TALKATIVE else None


def expected(parallel: Any) -> int | None:
    """Return how many calls a Parallel was given, where what it was given has a length."""
    found = getattr(parallel, "n_tasks", None)
    return found if isinstance(found, int) else None


class _Buffer(Iterator[Any]):
    """What was gathered; ends where it is empty, and may be filled again."""

    def __init__(self) -> None:
        self.items: collections.deque[Any] = collections.deque()
        self.error: Exception | None = None

    def __next__(self) -> Any:
        if self.items:
            return self.items.popleft()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        raise StopIteration


class Pump:
    """Dispatches the calls of one Parallel call that has joblib's default ``pre_dispatch``.

    Parameters
    ----------
    parallel : joblib.Parallel
    wanted : callable
        Returns how many further calls should be dispatched now.
    pouring : callable
        Told now and then while the generator gives many.
    exhausted : callable
        Told once the generator has ended.
    """

    def __init__(
        self,
        parallel: Any,
        wanted: Callable[[], int],
        *,
        pouring: Callable[[], None],
        exhausted: Callable[[], None],
    ) -> None:
        self._parallel = parallel
        self._wanted = wanted
        self._pouring, self._exhausted = pouring, exhausted
        self._poked = threading.Event()
        self._stopped = False
        self._source: Iterator[Any] | None = None
        self._buffer = _Buffer()
        self._pre_dispatch = parallel.pre_dispatch
        parallel.pre_dispatch = 1

    @staticmethod
    def applies_to(parallel: Any) -> bool:
        """Tell whether a Parallel has joblib's default ``pre_dispatch``."""
        return str(parallel.pre_dispatch).replace(" ", "") == DEFAULT_PRE_DISPATCH

    def take_over(self) -> None:
        """Begin, once the first call was submitted; on the caller's thread, which holds joblib's lock."""
        parallel = self._parallel
        if self._source is not None or parallel._original_iterator is None:
            return
        self._source = parallel._original_iterator
        # What joblib's callbacks would dispatch from, and their wish to: both are the pump's from here on.
        parallel._original_iterator = self._buffer
        parallel.dispatch_next = self.poke
        threading.Thread(target=self._run, name="joblib_azure-dispatch", daemon=True).start()

    def poke(self) -> None:
        """Ask again whether more is wanted."""
        if not self._poked.is_set():  # joblib says so of each chunk that completes, and to set takes its time
            self._poked.set()

    def stop(self) -> None:
        """End; the thread may still be inside the user's generator and ends when that yields."""
        self._stopped = True
        self._poked.set()
        self._parallel.pre_dispatch = self._pre_dispatch
        self._parallel.__dict__.pop("dispatch_next", None)

    def _run(self) -> None:
        ended = False
        while not ended and not self._stopped:
            wanted = self._wanted()
            if wanted <= 0:
                self._poked.wait(_PATIENCE)
                self._poked.clear()
                continue
            ended = self._gather(min(wanted, _MOST if self._parallel._get_batch_size() > 1 else _FEW))
            if len(self._buffer.items) > 1 and not ended:
                self._pouring()
            self._hand_over(ended)

    def _gather(self, most: int) -> bool:
        """Fill the buffer from the user's generator; True where that has ended."""
        source = self._source
        if source is None:
            return True
        end = time.monotonic() + _GATHER
        try:
            for item in itertools.islice(source, most):
                self._buffer.items.append(item)
                if time.monotonic() > end:
                    return False
        except Exception as exc:
            self._buffer.error = exc
            return True
        except BaseException as exc:
            # joblib surfaces Exceptions of the generator in the caller; anything else would end this thread
            # alone and leave the caller waiting for ever.
            self._buffer.error = RuntimeError(f"the generator of calls raised {type(exc).__name__}: {exc}")
            self._buffer.error.__cause__ = exc
            return True
        return len(self._buffer.items) < most

    def _hand_over(self, ended: bool) -> None:
        parallel, buffer = self._parallel, self._buffer
        with parallel._lock:
            if self._stopped or parallel._original_iterator is not buffer:
                return
            # Not `buffer` itself: at what it takes for the end of its own iterator joblib cuts smaller chunks.
            while parallel.dispatch_one_batch(iter(buffer.__next__, buffer)):
                pass
            if not ended:
                return
            # Finds the buffer empty and so ends joblib's iteration.
            type(parallel).dispatch_next(parallel)
            self._exhausted()
        # The caller's thread, still in Parallel's dispatch of the first call, may have read the iterator before
        # it was taken away and write `_iterating` after: joblib would then wait for calls that never come.
        for _ in range(5):
            time.sleep(0.02)
            with parallel._lock:
                if self._stopped or parallel._original_iterator is not None:
                    return
                parallel._iterating = False
