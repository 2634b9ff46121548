"""The policy itself, for azure-core's pipelines."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from azure.core.exceptions import ServiceResponseError, ServiceResponseTimeoutError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import RetryPolicy

from ..ending import ending

#: Seconds for which a service that never answered yet is tried: a wrong endpoint is told soon, an outage is waited out.
FIRST_CONTACT = 10.0
#: Seconds for which requests are tried once the interpreter ends.
_AT_EXIT = 5.0
#: Seconds between two tries, at first and at most.
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 8.0
#: Time is the bound.
_WITHOUT_END = 1_000_000
#: Seconds between two looks whether anybody still waits.
_LOOK = 0.25
#: What azure-storage-blob says to its own policy, of a second location that we do not have.
_OF_STORAGE = ("hosts", "location_mode", "retry_to_secondary", "retry_hook")
#: How the path ends by which tasks are added.
_TASKS = "/addtaskcollection"
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"})


class Patience(RetryPolicy):  # type: ignore[type-arg]
    """Tries until a time is over, or nobody waits any more.

    A policy belongs to one client, as all policies do.

    Parameters
    ----------
    seconds : float
    wanted : callable
        Asked while it waits for the next try: whether there is any sense in one.
    """

    def __init__(self, seconds: float, wanted: Callable[[], bool] = lambda: True) -> None:
        super().__init__(
            retry_total=_WITHOUT_END,
            retry_connect=_WITHOUT_END,
            retry_read=_WITHOUT_END,
            retry_status=_WITHOUT_END,
        )
        self._seconds, self._wanted = seconds, wanted
        self._answered = False

    def configure_retries(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of one request."""
        for name in _OF_STORAGE:
            options.pop(name, None)
        return {**super().configure_retries(options), "methods": _METHODS, "begun": time.monotonic()}

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        """Return how long to wait where the service does not say; many clients do not come at the same time again."""
        longest = min(_LAST_PAUSE, _FIRST_PAUSE * 2 ** min(len(settings["history"]) - 1, 10))
        return float(longest * random.uniform(0.5, 1.0))

    def increment(self, settings: dict[str, Any], response: Any = None, error: Exception | None = None) -> bool:
        """Count a try, wait, and tell whether another one is to be made."""
        if not super().increment(settings, response=response, error=error):
            return False
        # Whatever took the request and gave no answer is there: the endpoint is not a wrong one.
        self._answered = self._answered or isinstance(error, ServiceResponseError)
        pause = self.get_backoff_time(settings)
        if isinstance(response, PipelineResponse):
            pause = self.get_retry_after(response) or pause
        end = self._end(settings)
        now = time.monotonic()
        if now + pause > end:
            return False
        rest = now + pause
        while (left := rest - time.monotonic()) > 0:
            if not self._wanted() or time.monotonic() > self._end(settings):
                return False
            time.sleep(min(_LOOK, left))
        return self._wanted()

    def sleep(self, settings: dict[str, Any], transport: Any, response: Any = None) -> None:
        """Nothing: `increment` has waited."""

    def _end(self, settings: dict[str, Any]) -> float:
        seconds = self._seconds if self._answered else min(self._seconds, FIRST_CONTACT)
        if ending():
            seconds = min(seconds, _AT_EXIT)
        return float(settings["begun"] + seconds)

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send a request, again and again if need be.

        Raises
        ------
        azure.core.exceptions.AzureError
        """
        mode = request.context.options.get("location_mode")
        response = super().send(request)
        if mode is not None:
            response.http_response.location_mode = mode  # azure-storage-blob looks for it there
        if response.http_response.status_code >= 500 and request.http_request.url.partition("?")[0].endswith(_TASKS):
            # azure-batch would ask again without any end of its own.
            raise ServiceResponseTimeoutError(
                f"the service answers {response.http_response.status_code} for {self._seconds:g} s"
            )
        return response

    def is_retry(self, settings: dict[str, Any], response: PipelineResponse[Any, Any]) -> bool:
        """Tell whether an answer is none."""
        self._answered = True
        return super().is_retry(settings, response)
