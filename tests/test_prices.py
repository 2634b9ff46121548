"""What a node costs an hour: the configuration, Azure's price list as it is documented, and the cache of it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import price_list
import pytest
from price_list import DEDICATED, REGION, SIZE, SPOT, PriceList, entry, kind

from joblib_azure.config import NodePriceConfig
from joblib_azure.errors import ServiceError
from joblib_azure.prices import VARIABLE, PriceLookup
from joblib_azure.prices.listing import pick
from joblib_azure.service.retail import retail_items

ENDPOINT = f"https://me.{REGION}.batch.azure.com"
NOW = 1.8e9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(platformdirs.user_cache_dir("joblib_azure", appauthor=False)) / "prices"


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> Iterator[PriceList]:
    with PriceList().served() as served:
        monkeypatch.setenv(VARIABLE, served.url)
        yield served


def nowhere() -> str:
    """Return a URL at which nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/api/retail/prices"


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) if cache.exists() else []


# the list -------------------------------------------------------------------------------------------------


def test_what_is_asked_and_every_page_that_is_answered(prices: PriceList) -> None:
    asked: dict[str, Any] = {"region": REGION, "size": SIZE, "seconds": 10.0}
    found = retail_items(prices.url, currency="USD", **asked)
    wanted = [
        each
        for each in price_list.ENTRIES
        if (each["armRegionName"], each["armSkuName"], each["type"], each["serviceName"], each["currencyCode"])
        == (REGION, SIZE, "Consumption", "Virtual Machines", "USD")
    ]
    assert found == wanted
    assert len(prices.asked) == -(-len(wanted) // prices.page) > 2
    first = prices.asked[0]
    assert first["currencyCode"] == ["'USD'"]
    assert sorted(first["$filter"][0].split(" and ")) == [
        f"armRegionName eq '{REGION}'",
        f"armSkuName eq '{SIZE}'",
        "priceType eq 'Consumption'",
        "serviceName eq 'Virtual Machines'",
    ]
    assert [item["retailPrice"] for item in retail_items(prices.url, currency="EUR", **asked)] == [0.21]
    assert retail_items(prices.url, currency="USD", region="nowhere", size=SIZE, seconds=10.0) == []


def test_the_price_of_a_node_among_all_that_is_similar() -> None:
    mine = [
        each
        for each in price_list.ENTRIES
        if (each["armRegionName"], each["armSkuName"], each["serviceName"]) == (REGION, SIZE, "Virtual Machines")
    ]
    assert pick(mine, "USD", NOW) == (DEDICATED, SPOT)
    assert pick(reversed(mine), "USD", NOW) == (DEDICATED, SPOT)
    assert pick(mine, "EUR", NOW) == (0.21, None)
    assert pick([], "USD", NOW) == (None, None)
    # A low-priority price stands for the spot price where there is none, and never for a dedicated one.
    assert pick([entry(0.0461, **kind("Low Priority"))], "USD", NOW) == (None, 0.0461)
    # Of two with the same begin, the higher; one that is to come does not count, until it has.
    assert pick([entry(0.2), entry(0.3), entry(0.25)], "USD", NOW) == (0.3, None)
    later = entry(9.0, effectiveStartDate="2027-02-01T00:00:00Z")
    assert pick([entry(0.2), later], "USD", NOW) == (0.2, None)
    assert pick([entry(0.2), later], "USD", NOW + 31 * 86400) == (9.0, None)
    strange = [
        entry(0.0),
        entry(0.1, retailPrice=None),
        entry(0.1, unitOfMeasure="1 GB/Month"),
        entry(0.1, tierMinimumUnits=100.0),
        {},
    ]
    assert pick(strange, "USD", NOW) == (None, None)


def test_what_is_no_price_list(prices: PriceList) -> None:
    def ask(**more: Any) -> list[dict[str, Any]]:
        wanted = {"region": REGION, "size": SIZE, "currency": "USD", "seconds": 10.0, **more}
        return retail_items(prices.url, **wanted)

    for body in (b"<html>sign in to the hotel's network</html>", b"[]", b'{"Items": 3}', b'{"Items": [1]}', b"null"):
        prices.body = body
        with pytest.raises(ServiceError, match="is no price list"):
            ask()
    prices.body, prices.status = b'{"Error": {"Code": "BadRequest", "Message": "Invalid currency"}}', 400
    with pytest.raises(ServiceError, match="looking up prices"):
        ask(currency="XXX")
    prices.body, prices.status = None, 429
    with pytest.raises(ServiceError, match="looking up prices"):
        ask()
    assert len(prices.asked) == 7  # nothing was tried twice
    prices.status, prices.elsewhere = 200, "http://169.254.169.254/api/retail/prices"
    with pytest.raises(ServiceError, match="goes on elsewhere, at http://169"):
        ask()
    prices.elsewhere, prices.delay, prices.page = "", 0.1, 1
    with pytest.raises(ServiceError, match="took longer than 0 s"):
        ask(seconds=0.15)
    prices.delay, prices.entries = 0.0, price_list.ENTRIES * 40
    with pytest.raises(ServiceError, match="has no end"):
        ask()


# looking up -----------------------------------------------------------------------------------------------


def test_it_is_looked_up_once_for_all_processes_of_the_user(prices: PriceList, cache: Path) -> None:
    lookup = PriceLookup(SIZE, ENDPOINT)
    assert not lookup.now.known
    assert lookup.now.source == "Azure's price list was not asked yet"
    assert prices.asked == []
    found = lookup.wait(30)
    assert (found.dedicated, found.spot, found.currency, found.free) == (DEDICATED, SPOT, "USD", False)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert found.source == f"Azure's retail list for {REGION}, looked up on {day}"
    assert str(found) == f"{DEDICATED} USD dedicated and {SPOT} USD spot an hour, {found.source}"
    asked = len(prices.asked)
    assert lookup.wait(30) == found
    again = PriceLookup(SIZE, ENDPOINT)
    assert again.now == found == again.wait(30)
    assert len(prices.asked) == asked
    # Another size, region or currency is another price.
    assert PriceLookup("Standard_D8s_v5", ENDPOINT).wait(30).dedicated == 0.46
    assert PriceLookup(SIZE, "https://me.eastus.batch.azure.com").wait(30).dedicated == 0.3
    assert PriceLookup(SIZE, ENDPOINT, NodePriceConfig(currency="EUR")).wait(30).dedicated == 0.21
    assert len(files(cache)) == 4
    assert all(json.loads(path.read_text())["looked_up"] <= time.time() for path in files(cache))


def _age(cache: Path, days: float) -> None:
    (path,) = files(cache)
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "looked_up": told["looked_up"] - days * 86400}))


def test_a_price_is_todays_for_a_week_and_an_older_one_is_better_than_none(prices: PriceList, cache: Path) -> None:
    first = PriceLookup(SIZE, ENDPOINT).wait(30)
    prices.entries = [entry(0.25)]
    _age(cache, 6.9)
    asked = len(prices.asked)
    assert PriceLookup(SIZE, ENDPOINT).wait(30).dedicated == DEDICATED
    assert len(prices.asked) == asked
    _age(cache, 0.2)
    prices.status = 503
    old = PriceLookup(SIZE, ENDPOINT).wait(30)
    assert (old.dedicated, old.spot) == (DEDICATED, SPOT)
    assert old.source.endswith("it cannot be had now")
    assert old.source != first.source
    assert len(prices.asked) == asked + 1
    prices.status = 200
    new = PriceLookup(SIZE, ENDPOINT).wait(30)
    assert (new.dedicated, new.spot) == (0.25, None)
    # A clock that was set back makes it old, not new for ever.
    _age(cache, -400)
    asked = len(prices.asked)
    assert PriceLookup(SIZE, ENDPOINT).wait(30).dedicated == 0.25
    assert len(prices.asked) == asked + 1


def test_that_the_list_lacks_a_size_is_known_for_a_day(prices: PriceList, cache: Path) -> None:
    prices.entries = []
    found = PriceLookup(SIZE, ENDPOINT).wait(30)
    assert not found.known
    assert found.source.startswith(f'Azure\'s price list has no {SIZE} in {REGION} in USD; write `"prices"')
    asked = len(prices.asked)
    assert PriceLookup(SIZE, ENDPOINT).wait(30) == found
    assert len(prices.asked) == asked
    _age(cache, 1.1)
    prices.entries = price_list.ENTRIES
    assert PriceLookup(SIZE, ENDPOINT).wait(30).dedicated == DEDICATED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"looked_up": "x"}', '{"looked_up": 1, "dedicated": "y"}', "\0"])
def test_a_cache_that_cannot_be_read_is_none(prices: PriceList, cache: Path, content: str) -> None:
    PriceLookup(SIZE, ENDPOINT).wait(30)
    (path,) = files(cache)
    path.write_text(content)
    assert PriceLookup(SIZE, ENDPOINT).wait(30).dedicated == DEDICATED
    assert json.loads(path.read_text())["dedicated"] == DEDICATED


def test_a_cache_that_cannot_be_written_is_none(prices: PriceList, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    assert PriceLookup(SIZE, ENDPOINT).wait(30).dedicated == DEDICATED


def test_nobody_waits_long_for_a_list_that_does_not_answer(prices: PriceList) -> None:
    prices.delay = 2.0
    lookup = PriceLookup(SIZE, ENDPOINT)
    begun = time.monotonic()
    lookup.start()
    assert not lookup.now.known
    assert time.monotonic() - begun < 1.0
    found = lookup.wait(0.1)
    assert time.monotonic() - begun < 1.9
    assert found.source == f"{prices.url} did not answer within 0 s"
    prices.delay = 0.0
    assert lookup.wait(30).dedicated == DEDICATED  # it was looked up all the same


def test_a_list_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv(VARIABLE, nowhere())
    found = PriceLookup(SIZE, ENDPOINT).wait(30)
    assert not found.known
    assert "looking up prices: nothing answers at http://127.0.0.1:" in found.source
    assert files(cache) == []
    # What the configuration has does not need it, and half of it is used where the other half cannot be had.
    assert PriceLookup(SIZE, ENDPOINT, NodePriceConfig(spot=0.02)).wait(30).spot == 0.02


def test_the_configuration_is_stronger_than_the_list(prices: PriceList) -> None:
    own = PriceLookup(SIZE, ENDPOINT, NodePriceConfig(currency="GBP", dedicated=0.5, spot=0.0)).wait(30)
    assert (own.currency, own.dedicated, own.spot, own.source) == ("GBP", 0.5, 0.0, "the configuration's")
    assert prices.asked == []
    half = PriceLookup(SIZE, ENDPOINT, NodePriceConfig(dedicated=0.2)).wait(30)
    assert (half.dedicated, half.spot) == (0.2, SPOT)
    assert half.source.startswith("the configuration's and Azure's retail list for")


@pytest.mark.parametrize(
    ("endpoint", "free"),
    [
        ("http://127.0.0.1:8090", True),
        ("https://localhost:8090", True),
        ("https://account.localhost", True),
        ("http://[::1]:80", True),
        (ENDPOINT, False),
    ],
)
def test_local_nodes_cost_nothing_and_nobody_is_asked(prices: PriceList, endpoint: str, free: bool) -> None:
    lookup = PriceLookup("Emulated_C2", endpoint)
    assert lookup.now.free is free
    if free:
        assert lookup.wait(30).free
        assert lookup.now.source == "the nodes are emulated on this machine"
        # Unless somebody says what they would cost.
        assert PriceLookup("Emulated_C2", endpoint, NodePriceConfig(dedicated=0.2)).wait(30).dedicated == 0.2
        assert prices.asked == []


@pytest.mark.parametrize(
    ("size", "endpoint", "variable", "reason"),
    [
        (SIZE, None, "", "the account's endpoint is not known"),
        (SIZE, "", "", "the account's endpoint is not known"),
        ("", ENDPOINT, "", "the size of the nodes is not known"),
        (SIZE, "https://me.chinaeast2.batch.chinacloudapi.cn", "", "not that of Azure China"),
        (SIZE, "https://batch.example.com", "", "batch.example.com, does not tell its region"),
        (SIZE, "https://me.batch.azure.com", "", "does not tell its region"),
        (SIZE, ENDPOINT, "0", f"{VARIABLE}=0 keeps Azure's price list from being asked"),
        (SIZE, ENDPOINT, "Off", f"{VARIABLE}=Off keeps"),
        (SIZE, ENDPOINT, "prices.json", "'prices.json' is neither the URL of a price list nor 0"),
        (SIZE, ENDPOINT, "ftp://host/x", "neither the URL"),
        (SIZE, ENDPOINT, "http://example.com/prices", "not https"),
    ],
)
def test_why_nothing_is_known(
    size: str, endpoint: str | None, variable: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, variable)
    found = PriceLookup(size, endpoint).wait(30)
    assert not found.known
    assert reason in found.source


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://me.northeurope.batch.azure.com", "northeurope"),
        ("https://ME.WestEurope.batch.azure.com/", "westeurope"),
        ("https://me.usgovvirginia.batch.usgovcloudapi.net", "usgovvirginia"),
    ],
)
def test_the_endpoint_tells_the_region(prices: PriceList, endpoint: str, region: str) -> None:
    prices.entries = [entry(0.5, armRegionName=region)]
    assert PriceLookup(SIZE, endpoint).wait(30).dedicated == 0.5
    # The service takes a size in any case, and the list in its own.
    assert PriceLookup(SIZE.lower(), endpoint).now.dedicated == 0.5
