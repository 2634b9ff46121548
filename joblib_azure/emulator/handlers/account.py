"""Operations of the account: supported images, node counts, applications (there are none)."""

from __future__ import annotations

from datetime import datetime

from .. import errors, odata, times, usage, wire
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


_USAGE_OPERATORS = frozenset({"eq", "ge", "gt", "le", "lt", "startswith"})
_USAGE_FIELDS = {"poolId": odata.Field("string", lambda each: each["poolId"], _USAGE_OPERATORS)}


@handles("list_pool_usage_metrics")
async def list_pool_usage_metrics(call: Call) -> Answer:
    now = times.now()
    first, last = usage.last_interval(now)
    start = _moment(call, "starttime", first, first)
    end = _moment(call, "endtime", last, last)
    if start >= end:
        raise errors.invalid_query("startTime", times.iso(start), "It does not lie before the end.")
    found = usage.metrics(call.engine.account, start, end, now)
    return call.listing(found, dict, metadata="poolusagemetrics", fields=_USAGE_FIELDS)


def _moment(call: Call, name: str, default: datetime, latest: datetime) -> datetime:
    text = call.query.get(name)
    if text is None:
        return default
    found = times.parse_datetime(text)
    if found is None:
        raise errors.invalid_query(name, text, "An ISO 8601 date and time is expected.")
    if found > latest + usage.INTERVAL:
        raise errors.invalid_query(name, text, f"The latest moment that metrics are known for is {times.iso(latest)}.")
    return found
