"""A local cluster's storm as its client sees it: the process that stands in for its servers, and what has struck.

The client proper knows nothing of it; a test or a person who made the storm asks here.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib_azure.errors import ConfigurationError, LocalClusterError
from joblib_azure.local.home import Identity

if TYPE_CHECKING:
    from joblib_azure.chaos.schedule import Schedule

__all__ = ["CHAOS_VARIABLE", "Storm", "StormReport", "chaos_schedule", "storm_spec"]

#: A seed, or the path of a schedule, for local clusters that are told nothing else.
CHAOS_VARIABLE = "JOBLIB_AZURE_CHAOS"
NAME = "the storm"
#: The storm's line on stdout, {"batch": "http://127.0.0.1:…", "storage": "…"}.
_READY = r'^(\{"batch":.*"storage":.*\})\s*$'
#: As `joblib_azure.chaos.__main__` has it, which is not imported: it is a program.
_SERVERS_VARIABLE = "JOBLIB_AZURE_CHAOS_SERVERS"
#: Seconds that a strike may look for something to strike, and some more.
_PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class StormReport:
    """What has struck so far.

    Parameters
    ----------
    seed : int
    ends_with : str
        The fault that a client cannot survive; empty where it must.
    struck : mapping of str to int
        How often each class of fault has struck.
    missed : tuple of str
        What found nothing to strike.
    """

    seed: int
    ends_with: str
    struck: Mapping[str, int]
    missed: tuple[str, ...]


def chaos_schedule(given: int | str | Path | Schedule) -> Schedule:
    """Return the schedule that a user means: one, a seed, or a file's.

    Raises
    ------
    ConfigurationError
    """
    from joblib_azure.chaos.schedule import Schedule, ScheduleError, schedule_of

    try:
        return given if isinstance(given, Schedule) else schedule_of(given if isinstance(given, int) else str(given))
    except ScheduleError as exc:
        raise ConfigurationError(f"chaos={given!r}: {exc}") from exc


def storm_spec(
    schedule: Schedule, identity: Identity, emulator: Mapping[str, Any], azurite: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the server that the guard starts in place of the emulator and Azurite, which it starts itself.

    Parameters
    ----------
    schedule : Schedule
    identity : Identity
        The cluster's.
    emulator, azurite : mapping
        As the guard would have been given them.
    """
    folder = identity.folder
    file = folder / "chaos.json"
    file.write_text(schedule.to_json())
    return {
        "name": NAME,
        "command": [
            *(sys.executable, "-m", "joblib_azure.chaos", "--schedule", str(file)),
            *("--account", identity.account, "--log", str(folder / "chaos.log")),
            *("--batch-port", str(identity.batch_port), "--storage-port", str(identity.storage_port)),
        ],
        "environment": {_SERVERS_VARIABLE: json.dumps([emulator, azurite])},
        "folder": emulator["folder"],
        "log": str(folder / "storm.log"),
        "ready": _READY,
        "grace": emulator["grace"] + azurite["grace"],
        "death_signal": emulator["death_signal"],
    }


class Storm:
    """Asks the storm of a cluster that runs.

    Parameters
    ----------
    schedule : Schedule
    endpoint : str
        The Batch proxy's.
    key : str
        The Batch account's.
    """

    def __init__(self, schedule: Schedule, endpoint: str, key: str) -> None:
        self.schedule = schedule
        self._endpoint, self._key = endpoint, key

    def __repr__(self) -> str:
        return f"<Storm seed={self.schedule.seed} at {self._endpoint}>"

    def report(self) -> StormReport:
        """Return what has struck so far. :raises LocalClusterError: nobody answers."""
        found = self._ask("GET", "report", None)
        return StormReport(
            seed=found["seed"],
            ends_with=found["ends_with"],
            struck=found["struck"],
            missed=tuple(found["missed"]),
        )

    def strike(self, fault: str, **values: float | str) -> str:
        """Let a fault strike now, and return what was struck.

        Parameters
        ----------
        fault : str
            Of `joblib_azure.chaos.faults.FAULTS`.
        **values
            Fields of `joblib_azure.chaos.schedule.Strike`.

        Raises
        ------
        LocalClusterError
            Where there is no such fault, or nothing to strike.
        """
        return str(self._ask("POST", "strike", {"fault": fault, **values})["struck"])

    def _ask(self, method: str, what: str, body: object) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"x-emulator-key": self._key, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._endpoint}/_chaos/{what}", data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_PATIENCE) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            with exc:
                said = json.loads(exc.read()).get("error", exc.reason)
            raise LocalClusterError(f"the storm refuses to {what}: {said}") from exc
        except OSError as exc:
            raise LocalClusterError(f"the storm does not answer at {self._endpoint}: {exc}") from exc
