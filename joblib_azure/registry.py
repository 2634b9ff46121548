"""Clusters by what the user wrote, and the one session of each.

Leaving ``parallel_config`` calls nothing, so sessions cannot live in it: they live here, end by idleness or
at the interpreter's exit, and a child process that was forked forgets them without ending its parent's.

SIGTERM and the end of a terminal (SIGHUP) call nothing either: Python just dies of them. Where nobody has given them a
meaning, they get one here with the first session, for the last seconds of the process: its jobs are ended, and then it
dies of the signal as it would have.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from .cluster import Cluster
from .config import AccountConfig, ClusterConfig
from .errors import ClusterError, ConfigurationError
from .resources import Resources
from .session import Session

logger = logging.getLogger(__name__)

#: Signals that end a process without a word, and seconds that it may take for its last ones.
_DEADLY = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_LAST_WORDS = 10.0

_lock = threading.RLock()
_clusters: dict[tuple[ClusterConfig, AccountConfig], Cluster] = {}
_sessions: dict[tuple[int, str, str], Session] = {}
#: Counts the Parallel calls of a script, from one of its sessions to the next.
_numbers: dict[tuple[int, str], Iterator[int]] = {}
#: All that are alive: one that has ended may still hold results for whoever consumes them.
_opened: weakref.WeakSet[Session] = weakref.WeakSet()
_local: list[Cluster] = []
#: Signals that are not listened to while the process forks.
_unheard: list[int] = []
#: What is to be done where the process dies of a signal.
_wills: dict[object, Callable[[], object]] = {}
#: Set once the interpreter has begun to end: a thread that goes on then opens nothing any more.
_ended = threading.Event()


def resolve_cluster(cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None) -> Cluster:
    """Return the cluster that the user means; the same object for the same configuration.

    Raises
    ------
    ConfigurationError
    """
    if isinstance(cluster, Cluster):
        return cluster
    if cluster is None:
        cluster = os.environ.get("JOBLIB_AZURE_CLUSTER")
        if not cluster:
            raise ConfigurationError(
                'no cluster is named: write parallel_config("azure", cluster="local") to run on this machine, '
                'cluster="cluster.json" for a pool on Azure, or set JOBLIB_AZURE_CLUSTER'
            )
    beside = None
    with _lock:
        if cluster == "local":
            return _default_local()
        if isinstance(cluster, str | os.PathLike):
            beside = cluster
            if not Path(cluster).exists():
                raise ConfigurationError(
                    f'cluster={os.fspath(cluster)!r} is neither "local" nor a file; write the path of a JSON file with '
                    "name, vmSize, nodes and maxTasksPerNode, or a ClusterConfig"
                )
            cluster = ClusterConfig.load(cluster)
        if not isinstance(cluster, ClusterConfig):
            raise ConfigurationError(
                f"cluster={cluster!r} is a {type(cluster).__name__}; "
                'expected "local", a path, a ClusterConfig or a Cluster'
            )
        account = AccountConfig.from_environment(beside=beside)
        return _clusters.setdefault((cluster, account), Cluster(cluster, account))


def _default_local() -> Cluster:
    """Return this process's local cluster; it starts when it is first used and ends with the process."""
    from .local import LocalCluster

    if not _local:
        _local.append(LocalCluster())
    return _local[0]


def session_for(cluster: Cluster, label: str = "", resources: Resources | None = None) -> Session:
    """Return the open session of a cluster, opening one where there is none.

    Parameters
    ----------
    cluster : Cluster
    label : str, default ""
        Of a script, which has a session of its own.
    resources : Resources, optional
        Files that the calls are given; for others there is another session.

    Raises
    ------
    ClusterError, ServiceError
        The former too where the interpreter is ending.
    SessionClosedError
        Where somebody has closed it while it was being opened.
    ConfigurationError
        Where a script's session has other resources, or these are not there.
    JobError
        Where somebody else uses that label.
    """
    resources = Resources() if resources is None else resources
    key = id(cluster), label, resources.key
    while True:
        with _lock:
            session, fresh = _sessions.get(key), False
            if session is None or session.closed:
                if _ended.is_set():
                    raise ClusterError("the interpreter is ending: no session is opened any more")
                if label and any(at[:2] == key[:2] and not other.closed for at, other in _sessions.items()):
                    raise ConfigurationError(
                        f"job={label!r} has other resource_files or inputs already: a script's job has the same for "
                        "all of its calls. Name all of them in each parallel_config"
                    )
                numbers = _numbers.setdefault(key[:2], itertools.count(1)) if label else None
                # Known from here on, so that whatever ends the process ends it too.
                session = _sessions[key] = Session(cluster, label, numbers, resources)
                _opened.add(session)
                cluster.on_close(close_sessions)
                _close_at_exit()
                fresh = True
        # Not under the lock: it may take minutes, and others are to be opened, or closed, meanwhile.
        if fresh:
            listen_to_signals()
        session.open()
        if not session.closed:
            if fresh:
                # Anew: it is to run before the hooks that end a local cluster's servers, which have come since.
                _close_at_exit()
            return session


def close_sessions(cluster: Cluster | None = None) -> None:
    """End the session of a cluster, or all of them: their jobs end on the service."""
    with _lock:
        ending = [s for s in _sessions.values() if cluster is None or s.cluster is cluster]
        for session in ending:
            _sessions.pop((id(session.cluster), session.label, session.resources.key), None)
        ending += [s for s in _opened if s.closed and (cluster is None or s.cluster is cluster)]
    for session in ending:
        session.close()
        session.release()


def _close_at_exit() -> None:
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    _ended.set()
    close_sessions()
    for cluster in _local:
        cluster.close()


# last words -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def last_will(action: Callable[[], object]) -> Iterator[None]:
    """Have something done where the process dies of a signal within a block.

    Parameters
    ----------
    action : callable
        Called on another thread while this one stands still, wherever it is: it must not want a lock of this one's.
    """
    listen_to_signals()
    token = object()
    _wills[token] = action
    try:
        yield
    finally:
        _wills.pop(token, None)


def listen_to_signals() -> None:
    """Let SIGTERM and SIGHUP end what is open before they end this process; where they have a meaning, that stays."""
    # Only the main thread may say so.
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _DEADLY:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    # The next one kills at once.
    signal.signal(number, signal.SIG_DFL)
    # Those too that are being closed: whoever does that may be this very thread, which stands still from here on.
    sessions = [session for session in list(_opened) if not session.gone]
    if sessions or _wills:
        # On a thread of its own: this one may stand within any lock. What it stands in the way of is not done.
        speaker = threading.Thread(target=_speak, args=(number, sessions), name="joblib_azure-signal", daemon=True)
        try:
            speaker.start()
        except RuntimeError:
            return  # the interpreter is ending, and all with it
        speaker.join(_LAST_WORDS)
    os.kill(os.getpid(), number)


def _speak(number: int, sessions: list[Session]) -> None:
    for action in (*(session.bequeath for session in sessions), *list(_wills.values())):
        try:
            action()
        except Exception as exc:
            logger.warning("ending what is open, for %s: %s", signal.Signals(number).name, exc)


def _be_deaf() -> None:
    """Before a fork: Python forgets a signal that the child gets before it is through, where there is a handler."""
    for number in _DEADLY:
        if signal.getsignal(number) is _on_signal:
            with contextlib.suppress(ValueError):  # not the main thread, whose alone the handlers are
                signal.signal(number, signal.SIG_DFL)
                _unheard.append(number)


def _listen_again() -> None:
    """After a fork, in the parent."""
    while _unheard:
        signal.signal(_unheard.pop(), _on_signal)


def _forget() -> None:
    """In a forked child: the threads are gone, and the jobs, with what signals do to them, are the parent's."""
    global _lock
    _unheard.clear()
    _be_deaf()  # where another thread has forked, which is the main one here
    _unheard.clear()
    _lock = threading.RLock()
    _clusters.clear()
    _sessions.clear()
    _numbers.clear()
    _opened.clear()
    _local.clear()
    _wills.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_be_deaf, after_in_parent=_listen_again, after_in_child=_forget)
