"""Where the smoke suite runs: on an emulator in every run of the tests, on a real account where it is switched on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from joblib_azure.config import AccountConfig
from joblib_azure.errors import ConfigurationError
from joblib_azure.local.host import LocalHost

SWITCH, SIZE = "JOBLIB_AZURE_LIVE", "JOBLIB_AZURE_LIVE_SIZE"
#: What Azure's clocks allow once in 30 s, this emulator allows every second.
_EMULATOR = (sys.executable, "-m", "joblib_azure.emulator", "--clock-rate", "30")


@dataclass(frozen=True)
class Place:
    """An account, and what its pools are made of."""

    account: AccountConfig
    settings: dict[str, Any]


def is_live() -> bool:
    """Whether the suite is to run on a real account."""
    return os.environ.get(SWITCH) == "1"


def lacking() -> str:
    """Why it cannot; empty where it can."""
    try:
        AccountConfig.from_environment()
    except ConfigurationError as exc:
        return f"no real account for the live suite: {exc}"
    return ""


@contextmanager
def place() -> Iterator[Place]:
    """The account that the suite runs on."""
    if is_live():
        size = os.environ.get(SIZE, "Standard_D2s_v5")
        yield Place(AccountConfig.from_environment(), {"vm_size": size, "node_timeout": 900})
        return
    with LocalHost(running_azurite_port=None, emulator_command=_EMULATOR) as host:
        account = AccountConfig(
            batch_account=host.account_name,
            batch_endpoint=host.batch_endpoint,
            batch_key=host.account_key,
            storage_connection_string=host.storage_connection_string,
        )
        settings = {
            "vm_size": "Emulated_C2",
            "node_timeout": 30,
            # The nodes are this machine: what this Python has is what they have.
            "python": sys.executable,
            "python_path": [entry for entry in sys.path if entry],
            "environment": {"mode": "none"},
        }
        yield Place(account, settings)
