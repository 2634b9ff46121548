"""The one retry policy of all requests, of the client and of the nodes, to Batch and to Storage.

azure-core's own, with a bound in time in place of a count, for all methods: what this package asks for may be asked
for twice. The time is the user's (``service_timeout``); a wait that the service asks for (``Retry-After``) is kept, or
given up at once where it would end later. Nothing else repeats a request. `policy` has it; what is here needs no
azure-core.
"""

from __future__ import annotations

#: Seconds for which a service may be out of reach, where nobody says: its own restarts take that long.
SERVICE_SECONDS = 120.0
#: The longest that a single request may take, and its part of the time for all of its tries.
_LONGEST_REQUEST, _PART = 60.0, 4


def request_timeout(seconds: float) -> float:
    """Return how long a single request may take, where `seconds` is the time for all of its tries."""
    return min(_LONGEST_REQUEST, seconds / _PART)
