"""The images that the account supports, and the node agent that each needs: a true extract of the service's list.

https://learn.microsoft.com/azure/batch/batch-pool-vm-sizes#supported-vm-images: a pool's image must be in the list,
with that agent, and before the end of its support; containers need an image with the capability DockerCompatible.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from . import errors, times

DOCKER = "DockerCompatible"
_HPC = (DOCKER, "SupportsRDMAOnly", "NvidiaTeslaDriverInstalled", "IntelMPIRuntimeInstalled")


@dataclass(frozen=True)
class Image:
    """One row of the list."""

    publisher: str
    offer: str
    sku: str
    agent: str
    capabilities: tuple[str, ...] = ()
    verified: bool = True
    end_of_life: datetime | None = None

    @property
    def os_type(self) -> str:
        return "windows" if "windows" in self.agent else "linux"

    @property
    def verification(self) -> str:
        return "verified" if self.verified else "unverified"

    def is_named(self, reference: dict[str, Any]) -> bool:
        names = (reference.get("publisher", ""), reference.get("offer", ""), reference.get("sku", ""))
        return tuple(name.lower() for name in names) == (self.publisher, self.offer, self.sku)

    def shape(self) -> dict[str, Any]:
        """As the service writes it."""
        found: dict[str, Any] = {
            "nodeAgentSKUId": self.agent,
            "imageReference": {
                "publisher": self.publisher,
                "offer": self.offer,
                "sku": self.sku,
                "version": "latest",
            },
            "osType": self.os_type,
            "capabilities": list(self.capabilities),
            "verificationType": self.verification,
        }
        if self.end_of_life is not None:
            found["batchSupportEndOfLife"] = times.iso(self.end_of_life)
        return found


def _day(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, tzinfo=timezone.utc)


_U20, _U22, _U24 = (f"batch.node.ubuntu {version}" for version in ("20.04", "22.04", "24.04"))
_WINDOWS = "batch.node.windows amd64"
#: In no order of preference, as the service's.
IMAGES = (
    Image("microsoft-dsvm", "ubuntu-hpc", "2204", _U22, _HPC, True, _day(2027, 3, 31)),
    Image("microsoft-dsvm", "ubuntu-hpc", "2404", _U24, _HPC),
    Image("microsoft-azure-batch", "ubuntu-server-container", "20-04-lts", _U20, (DOCKER,), True, _day(2025, 4, 22)),
    Image("canonical", "0001-com-ubuntu-server-focal", "20_04-lts", _U20, (), True, _day(2025, 4, 22)),
    Image("canonical", "0001-com-ubuntu-server-jammy", "22_04-lts", _U22, (), True, _day(2027, 3, 31)),
    Image("canonical", "ubuntu-24_04-lts", "server", _U24),
    Image("canonical", "ubuntu-24_04-lts", "minimal", _U24, (), False),
    Image("almalinux", "almalinux-x86_64", "8-gen2", "batch.node.el 8", (), True, _day(2029, 3, 1)),
    Image("almalinux", "almalinux-x86_64", "9-gen2", "batch.node.el 9"),
    Image("almalinux", "almalinux-hpc", "8_10-hpc-gen2", "batch.node.el 8", _HPC, True, _day(2029, 3, 1)),
    Image("debian", "debian-12", "12", "batch.node.debian 12"),
    Image("microsoftwindowsserver", "windowsserver", "2019-datacenter-with-containers", _WINDOWS, (DOCKER,)),
    Image("microsoftwindowsserver", "windowsserver", "2022-datacenter", _WINDOWS),
)
AGENTS = frozenset(image.agent for image in IMAGES)
_WHERE = "virtualMachineConfiguration"
_BY_ID = ("virtualMachineImageId", "sharedGalleryImageId", "communityGalleryImageId")


def check(machine: dict[str, Any], *, token: bool) -> str:
    """Refuse a pool's `virtualMachineConfiguration` where the service does, and where nothing here can run it.

    Returns
    -------
    str
        The id of an image of the subscription's own; empty for one of the marketplace.

    Raises
    ------
    BatchError
        400 for an image or an agent that is not supported, or not (any more) together; 403 for an image of the
        subscription's own with a shared key; 501 for Windows.
    """
    reference, agent = machine["imageReference"], machine["nodeAgentSKUId"]
    if agent not in AGENTS:
        reason = f"Not a supported node agent; use one of {', '.join(sorted(AGENTS))}."
        raise errors.invalid_property(f"{_WHERE}.nodeAgentSKUId", agent, reason)
    own = [name for name in _BY_ID if reference.get(name)]
    found = None
    if own:
        if not token:
            raise errors.needs_token("Compute")
    else:
        found = _marketplace(reference, agent)
    if agent == _WINDOWS:
        raise errors.not_implemented("Windows nodes: it runs commands on the machine that it is on")
    if "containerConfiguration" in machine and found is not None and DOCKER not in found.capabilities:
        reason = f"The image does not have the capability {DOCKER}; see the list of supported images."
        raise errors.invalid_property(
            f"{_WHERE}.containerConfiguration", machine["containerConfiguration"]["type"], reason
        )
    return str(reference[own[0]]) if own else ""


def _marketplace(reference: dict[str, Any], agent: str) -> Image:
    for name in ("publisher", "offer", "sku"):
        if not reference.get(name):
            raise errors.missing_property(f"{_WHERE}.imageReference.{name}")
    shown = "/".join(str(reference[name]) for name in ("publisher", "offer", "sku"))
    named = [image for image in IMAGES if image.is_named(reference)]
    if not named:
        reason = "The image is not among the supported images (GET /supportedimages)."
        raise errors.invalid_property(f"{_WHERE}.imageReference", shown, reason)
    for image in named:
        if image.agent == agent:
            if image.end_of_life is not None and image.end_of_life <= times.now():
                reason = f"The support of the image ended on {image.end_of_life:%Y-%m-%d}."
                raise errors.invalid_property(f"{_WHERE}.imageReference", shown, reason)
            return image
    reason = f"The agent does not go with {shown}, which needs {' or '.join(image.agent for image in named)}."
    raise errors.invalid_property(f"{_WHERE}.nodeAgentSKUId", agent, reason)
