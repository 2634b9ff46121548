"""What a session has on the service and in storage, and how it lets go of it.

::

    the job, inputs ──────────────────────── leave: the session ends ──────► ended; deleted, or kept until a day
    outputs ◄── fetched by the window ── retire: until all is consumed, or release ──► deleted, or kept as well

Results that a generator's consumer has not taken yet outlive the session here. Whether blobs are kept is told by
``keep_blobs``, and for a script by its label: the next run reads them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import JoblibAzureError
from .results import Window
from .storage import keep

if TYPE_CHECKING:
    from .session import Session

logger = logging.getLogger(__name__)


class Holdings:
    """The holdings of one session."""

    def __init__(self, session: Session) -> None:
        config = session.cluster.config
        self._session = session
        #: Through which results are fetched from the outputs.
        self.window = Window(
            self._fetch,
            None if session.label or config.keep_blobs == "always" else self._consumed,
            patience=config.service_timeout,
        )
        self._guard = threading.Lock()
        self._cleared = False

    @property
    def cleared(self) -> bool:
        """Whether nothing is left in storage that goes with this process."""
        return self._cleared

    @property
    def _keeps(self) -> bool:
        """Whether the session's blobs stay when it ends."""
        session = self._session
        wish = "always" if session.label else session.cluster.config.keep_blobs
        return wish == "always" or (wish == "on_error" and session.failed)

    # while the session lives ----------------------------------------------------------------------------

    def _fetch(self, blob: str, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        session = self._session
        return session.cluster.blobs.fetch(session.outputs, blob, offset, size, sink)

    def _consumed(self, blob: str) -> None:
        """Delete what was consumed, so that a session of many calls does not fill the account."""
        if not self._session.closed:
            self._session.pool.submit(self._delete, blob)

    def _delete(self, blob: str) -> None:
        session = self._session
        try:
            session.cluster.blobs.delete(session.outputs, blob)
        except JoblibAzureError as exc:
            logger.debug("deleting %s/%s: %s", session.outputs, blob, exc)

    # its end --------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """End the job, and let go of its inputs and of its pool's nodes; what fails is logged."""
        session = self._session
        cluster = session.cluster
        try:
            cluster.check()
            # Before the job ends: other clients take its containers for left over from then on.
            if self._keeps:
                self._keep(session.inputs)
            if self._keeps or self.window.left:
                self._keep(session.outputs)
            if session.batch_job.created:
                # A job whose infrastructure failed is kept, ended, for its logs; the service removes it in time.
                cluster.batch.end_job(session.job, delete=not (session.failed or session.label))
            if not self._keeps:
                cluster.blobs.delete_container(session.inputs)
            cluster.release(session.job)
        except JoblibAzureError as exc:
            logger.warning("closing session %s: %s", session.job, exc)

    def bequeath(self) -> None:
        """Let go of everything at once, and do nothing for this process, which is about to die; takes no lock."""
        self.leave()
        if not self._keeps:
            self._session.cluster.blobs.delete_container(self._session.outputs)

    def retire(self) -> None:
        """Let go of the outputs once all results were consumed or dropped; after `leave`."""
        self.window.retire(self.release)

    def release(self) -> None:
        """Let go of the outputs, consumed or not; after `leave`; what fails is logged. Idempotent."""
        session = self._session
        self.window.close(f"the session {session.job} was closed")
        with self._guard:
            if self._cleared:
                return
            self._cleared = True
        if self._keeps:
            return
        try:
            session.cluster.check()
            session.cluster.blobs.delete_container(session.outputs)
        except JoblibAzureError as exc:
            logger.warning("closing session %s: %s", session.job, exc)

    def _keep(self, container: str) -> None:
        session = self._session
        until = keep(session.cluster.blobs, container, session.cluster.config.keep_days)
        if until is not None:
            logger.info("the blobs of session %s stay in %s until %s", session.job, container, until.isoformat())
