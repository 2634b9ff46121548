"""Operations of the account: supported images, node counts, applications (there are none)."""

from __future__ import annotations

from .. import errors, odata, wire
from ..calls import Answer, Call, handles
from ..images import IMAGES, Image

_EQUAL = frozenset({"eq", "ne"})
_IMAGE_FIELDS = {
    "osType": odata.state(lambda image: image.os_type),
    "verificationType": odata.state(lambda image: image.verification),
    "nodeAgentSKUId": odata.Field("string", lambda image: image.agent, _EQUAL),
}


@handles("list_supported_images")
async def list_supported_images(call: Call) -> Answer:
    return call.listing(IMAGES, Image.shape, metadata="supportedimages", fields=_IMAGE_FIELDS)


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
