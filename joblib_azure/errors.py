"""Every error this package raises, in one tree.

::

    JoblibAzureError
     ├─ ConfigurationError (ValueError)      a setting is wrong; nothing was created
     ├─ MissingExtraError (ImportError)      a part of the package that was not installed
     ├─ ServiceError                         Batch or Storage refused or did not answer
     │   ├─ AuthenticationError              the key or the identity was refused
     │   ├─ ServiceUnreachableError          nothing answers at the endpoint
     │   ├─ ConflictError                    not now: the state of things forbids it
     │   ├─ QuotaError                       the account has no more of that
     │   ├─ ResourceExistsError
     │   └─ ResourceNotFoundError
     ├─ ClusterError                         the pool cannot be used as asked
     │   ├─ NodesUnavailableError            no node came up in time, or none can
     │   ├─ PoolDiffersError                 a pool of that name is there, and another one
     │   ├─ PackagesError                    the nodes cannot have the client's packages
     │   └─ LocalClusterError                the emulator or Azurite did not start or has died
     ├─ CodecError                           bytes that cannot be made or read
     │   ├─ IntegrityError                   authentication of a blob failed; nothing was unpickled
     │   ├─ ContentChangedError              an argument changed while it was being sent
     │   ├─ TaskPicklingError (PicklingError)    a call cannot be sent
     │   └─ ResultPicklingError (PicklingError)  a call's outcome cannot be sent back
     ├─ TaskFailedError                      the infrastructure lost a call more often than allowed
     │   └─ WorkerDiedError                  the call itself killed its worker
     ├─ JobError                             a detached job is not there, or cannot give what is asked
     ├─ CallExitedError                      the call raised SystemExit
     └─ SessionClosedError                   the session ended before the call did

    RemoteTraceback (Exception)              the ``__cause__`` of a call's own exception

A call's own exception is not in this tree: it reaches the caller with its own type. This module imports
the standard library only, since the nodes import it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pickle import PicklingError
from typing import Any

_SIGNATURE = re.compile(r"(?<=[?&;]sig=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """Return text without the signatures of the SAS in it: whoever reads one may do what it allows."""
    return _SIGNATURE.sub("***", text)


class JoblibAzureError(Exception):
    """Root of the package's errors.

    Parameters
    ----------
    message : str
        What happened and what to do next.
    **context : str or int or None
        Ids that belong to the error (``job``, ``task``, ``node``, ``pool``, ``code`` …); kept in `context`
        and shown behind the message.

    Attributes
    ----------
    context : dict of str to (str or int)
        The ids that were given, without the empty ones.
    """

    def __init__(self, message: str, **context: str | int | None) -> None:
        super().__init__(message)
        self.message = message
        self.context = {key: value for key, value in context.items() if value not in (None, "")}

    def __str__(self) -> str:
        if not self.context:
            return self.message
        return f"{self.message} [{', '.join(f'{k}={v}' for k, v in self.context.items())}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.context)

    def locate(self, **context: str | int | None) -> None:
        """Add ids that whoever raised it did not know; those that it has stay."""
        known = {key: value for key, value in context.items() if value not in (None, "")}
        self.context = {**known, **self.context}

    def advise(self, step: str) -> None:
        """Add what to do next, unless the message says it."""
        if step not in self.message:
            self.message = f"{self.message.rstrip('. ')}. {step}"


def _rebuild(
    cls: type[JoblibAzureError] | type[RemoteTraceback], message: str, context: Mapping[str, str | int]
) -> JoblibAzureError | RemoteTraceback:
    return cls(message, **context)


def stderr_end(tail: str) -> str:
    """Return the end of a task's stderr as messages have it behind what happened; empty where there is none."""
    tail = tail.strip()
    return f"\nIts stderr ends:\n{tail}\n" if tail else ""


def call_numbers(calls: Sequence[int]) -> int | str | None:
    """Return which calls are meant, as errors have it: a number, or words.

    Examples
    --------
    >>> call_numbers([7]), call_numbers(range(4, 8)), call_numbers([1, 5, 6])
    (7, '4 to 7', '1 to 6, not all of them')
    """
    if not calls:
        return None
    first, last = calls[0], calls[-1]
    if first == last:
        return first
    return f"{first} to {last}" + ("" if last - first + 1 == len(calls) else ", not all of them")


class ConfigurationError(JoblibAzureError, ValueError):
    """A setting is wrong. Raised before anything is created."""


class MissingExtraError(JoblibAzureError, ImportError):
    """A part of the package needs packages that were not installed; the message says how to install them."""


class ServiceError(JoblibAzureError):
    """The Batch or Storage service refused a request, or did not answer it."""


class AuthenticationError(ServiceError):
    """The service refused the key or the identity."""


class ServiceUnreachableError(ServiceError):
    """Nothing answers at the endpoint."""


class ConflictError(ServiceError):
    """What was asked for does not go with the state that things are in; later it may (409, 412)."""


class QuotaError(ServiceError):
    """The account's quota forbids it."""


class ResourceExistsError(ServiceError):
    """What was to be created is there already."""


class ResourceNotFoundError(ServiceError):
    """What was asked for is not there."""


class ClusterError(JoblibAzureError):
    """The cluster cannot be used as asked."""


class NodesUnavailableError(ClusterError):
    """No node came up in time, or none can come up."""


class PoolDiffersError(ClusterError):
    """A pool of that name is there, but was created with other settings; the message names each of them."""


class PackagesError(ClusterError):
    """The nodes cannot have the packages that the client has; raised before anything is created."""


class LocalClusterError(ClusterError):
    """The local cluster's emulator or Azurite did not start, or has died."""


class CodecError(JoblibAzureError):
    """Bytes that cannot be made or read."""


class IntegrityError(CodecError):
    """A blob's authentication code does not fit its content and place; nothing of it was unpickled."""


class ContentChangedError(CodecError):
    """What was to be stored under its content's name has another content by now; it was not stored."""


class TaskPicklingError(CodecError, PicklingError):
    """A call cannot be pickled, so it was not sent."""


class ResultPicklingError(CodecError, PicklingError):
    """A call ran, but its result or its exception cannot be pickled, so it cannot come back."""


class TaskFailedError(JoblibAzureError):
    """The infrastructure lost a call more often than it may be tried."""


class WorkerDiedError(TaskFailedError):
    """A call killed the process that ran it (``os._exit``, a signal, a crash, out of memory)."""


class CallExitedError(JoblibAzureError):
    """A call raised `SystemExit` on its node. It does not end the client."""


class JobError(JoblibAzureError):
    """A detached job is not there, was ended before a call's outcome was there, or cannot give what is asked of it."""


class SessionClosedError(JoblibAzureError):
    """The session was closed before the call's outcome was there."""


class RemoteTraceback(Exception):
    """Carries the traceback of a call on its node as text; the ``__cause__`` of the call's exception.

    Parameters
    ----------
    text : str
        As Python writes it: the user's frames, without those of the machinery around them.
    **context : str or int or None
        ``call``, ``node``, ``job``, ``task``; and ``log``, the command that shows what the task wrote.

    Attributes
    ----------
    text : str
    context : dict of str to (str or int)
        Without what is empty.
    """

    def __init__(self, text: str, **context: str | int | None) -> None:
        super().__init__(text)
        self.text = text
        self.context = {key: value for key, value in context.items() if value not in (None, "")}

    def __str__(self) -> str:
        ids = ", ".join(f"{key} {value}" for key, value in self.context.items() if key != "log")
        log = f"; `{self.context['log']}` shows what its task wrote" if "log" in self.context else ""
        where = f"\n(raised by {ids}{log})" if ids else ""
        return f'\n"""\n{self.text.strip(chr(10))}\n"""{where}'

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.text, self.context)
