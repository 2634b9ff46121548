"""Operations of the account: supported images, node counts, applications (there are none)."""

from __future__ import annotations

from .. import errors, odata, wire
from ..calls import Answer, Call, handles

#: A true extract of the service's list: (publisher, offer, sku, node agent).
_IMAGES = (
    ("microsoft-dsvm", "ubuntu-hpc", "2204", "batch.node.ubuntu 22.04"),
    ("canonical", "0001-com-ubuntu-server-jammy", "22_04-lts", "batch.node.ubuntu 22.04"),
    ("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04"),
    ("almalinux", "almalinux-x86_64", "8-gen2", "batch.node.el 8"),
    ("almalinux", "almalinux-x86_64", "9-gen2", "batch.node.el 9"),
    ("debian", "debian-12", "12", "batch.node.debian 12"),
)
#: Images that are known by other names too, and the agent each needs.
_SHORT = (
    ("canonical", "ubuntu-server", "22_04-lts", "batch.node.ubuntu 22.04"),
    ("canonical", "ubuntu-server", "24_04-lts", "batch.node.ubuntu 24.04"),
)
AGENTS = frozenset(agent for *_, agent in _IMAGES)


def _image(row: tuple[str, str, str, str]) -> dict[str, object]:
    publisher, offer, sku, agent = row
    return {
        "nodeAgentSKUId": agent,
        "imageReference": {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"},
        "osType": "linux",
        "capabilities": [],
        "verificationType": "verified",
    }


_EQUAL = frozenset({"eq", "ne"})
_IMAGE_FIELDS = {
    "osType": odata.state(lambda row: "linux"),
    "verificationType": odata.state(lambda row: "verified"),
    "nodeAgentSKUId": odata.Field("string", lambda row: row[3], _EQUAL),
}


@handles("list_supported_images")
async def list_supported_images(call: Call) -> Answer:
    return call.listing(_IMAGES + _SHORT, _image, metadata="supportedimages", fields=_IMAGE_FIELDS)


@handles("list_pool_node_counts")
async def list_pool_node_counts(call: Call) -> Answer:
    return call.listing(
        list(call.engine.account.pools.values()),
        wire.node_counts,
        metadata="poolnodecounts",
        key=lambda pool: pool.sequence,
        fields={"poolId": odata.exact(lambda pool: pool.id)},
    )


@handles("list_applications")
async def list_applications(call: Call) -> Answer:
    return call.listing([], dict, metadata="applications")


@handles("get_application")
async def get_application(call: Call) -> Answer:
    raise errors.application_not_found()
