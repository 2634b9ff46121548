"""A Batch task on a warm node: a few milliseconds of Python between the service and the runner that has all loaded.

::

    the task's environment, its secrets ──► supervisor ──forks──► host ──leases──► runner
    the task's stdout and stderr ◄──────────────── pipes ◄──────────┴────────────────┘
    exit code ◄────────────────────────────────── {"end": 0} ◄──────┘

Where nobody answers, or whoever did is gone before the end, the task runs its bundle by itself (`task`): warmth is an
accelerator, never a condition. When the service ends this process, the kernel closes its socket, and the calls end.

It is imported by itself, without the package around it and without site packages, and imports what the interpreter has
built in, or nearly so: each import would be paid for every task. What both ends of the socket share is here for the
same reason. Messages are marshalled: both ends are the same Python.
"""

from __future__ import annotations

import _socket
import marshal
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

#: Of the supervisor of a code folder, in that folder.
SOCKET = "socket"
#: Seconds that a supervisor which listens may take to answer: it may be loading what it needs.
ANSWER_SECONDS = 20.0
_PIECE = 1 << 16
_MOST_FDS = 16


class Channel:
    """Messages, with file descriptors, over a connected Unix socket."""

    def __init__(self, sock: _socket.socket) -> None:
        self.socket = sock
        self._data = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message and descriptors with it. :raises OSError: where the other end is gone."""
        data = marshal.dumps((message, len(fds)))
        data = len(data).to_bytes(4, "big") + data
        packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)] if fds else []
        sent = self.socket.sendmsg([data], ancillary)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def read(self) -> bool:
        """Take what has come; False where the other end is gone."""
        space = _socket.CMSG_SPACE(4 * _MOST_FDS)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(_PIECE, space, _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for level, kind, packed in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                numbers = range(0, len(packed) - len(packed) % 4, 4)
                self._fds += [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in numbers]
        self._data += data
        return bool(data)

    def messages(self) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Yield the messages that have come whole, each with its descriptors."""
        while len(self._data) >= 4:
            end = 4 + int.from_bytes(self._data[:4], "big")
            if len(self._data) < end:
                return
            message, count = marshal.loads(self._data[4:end])
            self._data = self._data[end:]
            fds, self._fds = self._fds[:count], self._fds[count:]
            yield message, fds

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def connect(folder: str) -> Channel | None:
    """Return a connection to the supervisor of a code folder; None where none listens that is this user's own."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        # By its descriptor: a socket's path may have 107 bytes, which folders of emulated nodes exceed.
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{at}/{SOCKET}")
        finally:
            os.close(at)
        if peer_user(sock) == os.getuid():
            return Channel(sock)
    except OSError:
        pass
    sock.close()
    return None


def peer_user(sock: _socket.socket) -> int:
    """Return the id of the user at the other end."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def main() -> NoReturn:
    """Run the task; the argument is the folder of the node code."""
    begun = time.time()
    folder = os.path.realpath(sys.argv[1])
    secrets = b""
    while piece := os.read(0, _PIECE):
        secrets += piece
    channel = connect(folder)
    if channel is not None:
        code = _serve(
            channel, {"begun": begun, "secrets": secrets, "environment": dict(os.environ), "cwd": os.getcwd()}
        )
        if code is not None:
            sys.stderr.flush()
            os._exit(code)  # there is nothing to finalize
        channel.close()
    run_alone(folder, secrets)


def run_alone(folder: str, secrets: bytes) -> NoReturn:
    """Become the process that runs the bundle by itself."""
    reads, writes = os.pipe()
    os.write(writes, secrets)
    os.close(writes)
    os.dup2(reads, 0)
    os.execv(sys.executable, [sys.executable, folder])


def _serve(channel: Channel, request: dict[str, Any]) -> int | None:
    """Have the bundle run; return the task's exit code, or None where whoever should is gone."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    streams: dict[int, int] = {}
    answered, end = False, None
    try:
        # What does not fit into the socket is read by a supervisor that lives.
        channel.socket.settimeout(ANSWER_SECONDS)
        channel.send(request)
        channel.socket.settimeout(None)
    except OSError:
        return None
    while end is None:
        events = poll.poll(None if answered else ANSWER_SECONDS * 1000)
        if not events:
            sys.stderr.write(f"joblib_azure: the supervisor of this node did not answer in {ANSWER_SECONDS:.0f} s\n")
            return None
        for fd, _ in events:
            if fd != channel.fileno():
                if not _carry(fd, streams[fd]):
                    poll.unregister(fd)
                    os.close(fd)
                    del streams[fd]
                continue
            if not channel.read():
                if answered:
                    sys.stderr.write("joblib_azure: the process that ran this task's bundle is gone; running it anew\n")
                return None
            for message, fds in channel.messages():
                answered = True
                for each, target in zip(fds, message.get("streams", ()), strict=False):
                    os.set_blocking(each, False)
                    streams[each] = target
                    poll.register(each, select.POLLIN)
                end = message.get("end", end)
    for fd, target in streams.items():
        # What its calls wrote is in the pipe by now.
        while _carry(fd, target) and select.select([fd], [], [], 0)[0]:
            pass
    return int(end)


def _carry(fd: int, target: int) -> bool:
    """Write to `target` what can be read; False at its end."""
    try:
        data = os.read(fd, _PIECE)
    except BlockingIOError:
        return True
    left = data
    while left:
        left = left[os.write(target, left) :]
    return bool(data)
