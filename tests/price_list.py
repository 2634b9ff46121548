"""A price list on loopback that answers as https://prices.azure.com/api/retail/prices is documented to.

https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SIZE, REGION = "Standard_D4s_v5", "westeurope"
#: What the list below has of that size there.
DEDICATED, SPOT = 0.23, 0.0437


def entry(price: float, **more: Any) -> dict[str, Any]:
    """Return an entry with all of its fields; by default a Linux machine's."""
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": REGION,
        "location": "EU West",
        "effectiveStartDate": "2023-01-01T00:00:00Z",
        "meterId": "000a794b-bdb0-58be-a0cd-0c3a0f222923",
        "meterName": "D4s v5",
        "productId": "DZH318Z08NRP",
        "skuId": "DZH318Z08NRP/0049",
        "productName": "Virtual Machines Dsv5 Series",
        "skuName": "D4s v5",
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": SIZE,
        **more,
    }


def kind(name: str, windows: bool = False) -> dict[str, str]:
    """Return the names by which an entry is a spot or a low-priority machine's."""
    product = "Virtual Machines Dsv5 Series Windows" if windows else "Virtual Machines Dsv5 Series"
    return {"meterName": f"D4s v5 {name}".strip(), "skuName": f"D4s v5 {name}".strip(), "productName": product}


#: All that is easily taken for the price of a node, and what is.
ENTRIES = (
    entry(0.19, effectiveStartDate="2021-11-01T00:00:00Z"),
    entry(0.414, **kind("", windows=True)),
    entry(0.0461, **kind("Low Priority")),
    entry(0.0999, **kind("Low Priority", windows=True)),
    entry(DEDICATED),
    entry(0.0787, **kind("Spot", windows=True)),
    entry(SPOT, **kind("Spot")),
    entry(1207.0, type="Reservation", reservationTerm="1 Year"),
    entry(0.17, type="DevTestConsumption"),
    entry(0.29, productName="Dsv5 Series Cloud Services"),
    entry(9.99, effectiveStartDate="2999-01-01T00:00:00Z"),
    entry(0.3, armRegionName="eastus"),
    entry(0.46, armSkuName="Standard_D8s_v5"),
    entry(0.5, serviceName="Azure Machine Learning"),
    entry(0.21, currencyCode="EUR"),
)


class PriceList:
    """The list; its attributes may be changed while it answers.

    Attributes
    ----------
    entries : sequence of dict
    page : int
        Entries of a page.
    status, delay : int, float
        Of every answer.
    body : bytes or None
        In place of an answer.
    elsewhere : str
        Host that the links to the next pages name in place of its own.
    asked : list of str
        The queries, decoded.
    """

    def __init__(self, entries: Sequence[dict[str, Any]] = ENTRIES) -> None:
        self.entries, self.page = entries, 3
        self.status, self.delay = 200, 0.0
        self.body: bytes | None = None
        self.elsewhere = ""
        self.asked: list[dict[str, list[str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/api/retail/prices"

    def answer(self, query: str) -> bytes:
        asked = parse_qs(query)
        self.asked.append(asked)
        time.sleep(self.delay)
        if self.body is not None:
            return self.body
        conditions = dict(re.findall(r"(\w+) eq '([^']*)'", asked["$filter"][0]))
        currency = asked.get("currencyCode", ["'USD'"])[0].strip("'")
        names = {"priceType": "type"}
        found = [
            each
            for each in self.entries
            if each["currencyCode"] == currency
            and all(each[names.get(name, name)] == value for name, value in conditions.items())
        ]
        begin = int(asked.get("$skip", ["0"])[0])
        items = found[begin : begin + self.page]
        more = begin + self.page < len(found)
        base = self.elsewhere or self.url
        # The service writes the link with blanks, and with its port.
        following = f"{base}?currencyCode='{currency}'&$filter={asked['$filter'][0]}&$skip={begin + self.page}"
        told = {
            "BillingCurrency": currency,
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": items,
            "NextPageLink": following if more else None,
            "Count": len(items),
        }
        return json.dumps(told).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.answer(urlsplit(self.path).query)
                with contextlib.suppress(OSError):  # whoever asked has gone
                    self.send_response(outer.status)
                    self.send_header("Content-Type", "application/json; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    @contextlib.contextmanager
    def served(self) -> Iterator[PriceList]:
        """Serve it within a block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
