"""Azure's public list of retail prices, which needs no account.

https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from azure.core import PipelineClient
from azure.core.pipeline.policies import HttpLoggingPolicy
from azure.core.rest import HttpRequest

from ..errors import ServiceError
from .credentials import client_options
from .faults import translated

#: Seconds that a connection, and a pause within an answer, may take: nobody waits long for a price.
_CONNECT, _READ = 3.0, 4.0
#: A size in a region has a dozen entries, and a page a hundred or a thousand.
_MOST_PAGES = 20


def retail_items(url: str, *, region: str, size: str, currency: str, seconds: float) -> list[dict[str, Any]]:
    """Return the list's entries for the hours of virtual machines of a size.

    Parameters
    ----------
    url : str
        Of the list.
    region, size, currency : str
        As Azure spells them: ``westeurope``, ``Standard_D4s_v5``, ``EUR``.
    seconds : float
        After which no further page is asked for.

    Raises
    ------
    ServiceError
        Where it cannot be had in time, or is no such list.
    """
    end = time.monotonic() + seconds
    wanted = {
        "serviceName": "Virtual Machines",
        "armRegionName": region,
        "armSkuName": size,
        "priceType": "Consumption",
    }
    conditions = [f"{name} eq '{value.replace(chr(39), 2 * chr(39))}'" for name, value in wanted.items()]
    options = {**client_options(url), "connection_timeout": _CONNECT, "read_timeout": _READ}
    first = HttpRequest("GET", url, params={"currencyCode": f"'{currency}'", "$filter": " and ".join(conditions)})
    found: list[dict[str, Any]] = []
    # Without a policy that tries again: whoever wants a price comes another time.
    with (
        translated("looking up prices", url),
        PipelineClient(url, policies=[HttpLoggingPolicy()], **options) as client,
    ):
        request = first
        for _ in range(_MOST_PAGES):
            if time.monotonic() > end:
                raise ServiceError(f"the price list at {url} took longer than {seconds:.0f} s")
            response = client.send_request(request)
            response.raise_for_status()
            items, following = _page(response, url)
            found += items
            if not following:
                return found
            request = HttpRequest("GET", _same_host(following, url))
    raise ServiceError(f"the price list at {url} has no end: {len(found)} entries for {size} in {region}")


def _page(response: Any, url: str) -> tuple[list[dict[str, Any]], str]:
    try:
        told = response.json()
        return [dict(item) for item in told["Items"]], str(told.get("NextPageLink") or "")
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ServiceError(f"what {url} answers is no price list") from exc


def _same_host(following: str, url: str) -> str:
    """Return the next page's URL; the list itself writes it with the port, and with blanks in it."""
    new, old = urlsplit(following), urlsplit(url)
    if (new.scheme, new.hostname) != (old.scheme, old.hostname):
        raise ServiceError(f"the price list at {url} goes on elsewhere, at {new.scheme}://{new.hostname}: not followed")
    return following.replace(" ", "%20")
