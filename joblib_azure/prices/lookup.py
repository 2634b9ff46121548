"""`PriceLookup`: one look for the prices of one size of nodes on one account."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from ..config import NodePriceConfig
from ..config.clouds import cloud_of_host
from ..config.sizes import spelling_of
from ..errors import JoblibAzureError
from ..report.cost import NodePrices
from . import cache
from .cache import Found
from .listing import pick

logger = logging.getLogger(__name__)

#: The variable that names another list, or none.
VARIABLE = "JOBLIB_AZURE_PRICE_LIST"
_LIST = "https://prices.azure.com/api/retail/prices"
_OFF = ("0", "false", "no", "off")
#: Seconds for which a price counts as today's, and an answer that the list has none.
_LIFE, _LIFE_OF_NONE = 7 * 86400.0, 86400.0
#: Seconds that whoever asked for a cost waits, and that a look in the background may take.
PATIENCE, _BACKGROUND = 5.0, 20.0
_WRITE_THEM = 'write `"prices": {"dedicated": …, "spot": …}` into the cluster\'s file'


@dataclass(frozen=True)
class _Question:
    """What the list is asked."""

    url: str
    region: str
    size: str
    currency: str

    @property
    def path(self) -> Path:
        return cache.path_of(self.url, self.region, self.size, self.currency)


class PriceLookup:
    """What a node costs; nobody is asked before `start` or `wait`.

    Parameters
    ----------
    size : str
        Azure's name of the nodes' size; empty where it is not known.
    endpoint : str or None
        URL of the Batch account, which tells the region; None where it is not known.
    given : NodePriceConfig, optional
        What the configuration says of prices.
    """

    def __init__(self, size: str, endpoint: str | None, given: NodePriceConfig | None = None) -> None:
        self._given = given or NodePriceConfig()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: None where there is nothing to ask.
        self._question: _Question | None = None
        self._prices = self._without_asking(size, endpoint or "")

    @property
    def now(self) -> NodePrices:
        """What is known by now: the configuration's, those of the cache, or those that were looked up."""
        return self._prices

    def start(self) -> None:
        """Have them looked up on a thread of its own, if need be; at most once."""
        with self._lock:
            question = self._question
            if self._thread is not None or question is None:
                return
            # A daemon: the end of the interpreter does not wait for it.
            self._thread = threading.Thread(
                target=self._look_up, args=(question,), name="joblib_azure-prices", daemon=True
            )
            self._thread.start()

    def wait(self, seconds: float = PATIENCE) -> NodePrices:
        """Return them, looked up if need be, after `seconds` at most; it raises nothing."""
        self.start()
        thread, question = self._thread, self._question
        if thread is None or question is None:
            return self._prices
        thread.join(seconds)
        prices = self._prices
        if thread.is_alive() and not prices.known:
            return self._none(f"{question.url} did not answer within {seconds:.0f} s")
        return prices

    # without asking -------------------------------------------------------------------------------------

    def _without_asking(self, size: str, endpoint: str) -> NodePrices:
        from ..service.credentials import on_loopback

        given = self._given
        if given.dedicated is not None and given.spot is not None:
            return self._together(None, None, "")
        if endpoint and on_loopback(endpoint):
            if given.dedicated is None and given.spot is None:
                return NodePrices(source="the nodes are emulated on this machine", free=True)
            return self._together(None, None, "")
        question = self._question_for(size, endpoint)
        if isinstance(question, str):
            return self._none(question)
        found = cache.read(question.path)
        # A clock that went back makes everything old.
        if found is None or not 0 <= time.time() - found.looked_up < _life(found):
            self._question = question
        return self._none("Azure's price list was not asked yet") if found is None else self._of(found, question)

    def _question_for(self, size: str, endpoint: str) -> _Question | str:
        """Return what to ask, or why nothing can be asked."""
        url = os.environ.get(VARIABLE, "").strip() or _LIST
        host = (urlsplit(endpoint).hostname or "").lower()
        cloud = cloud_of_host(host)
        if url.lower() in _OFF:
            return f"{VARIABLE}={url} keeps Azure's price list from being asked; {_WRITE_THEM}"
        if not url.lower().startswith(("https://", "http://")):
            return f"{VARIABLE}={url!r} is neither the URL of a price list nor 0"
        if not size:
            return "the size of the nodes is not known: their pool is gone"
        if not host:
            return f"the account's endpoint is not known, which tells its region; {_WRITE_THEM}"
        if cloud is not None and cloud.name == "china":
            return f"Azure's public price list is not that of Azure China; {_WRITE_THEM}"
        # https://name.region.batch.azure.com
        region = host.removesuffix(f".{cloud.batch_suffix}").rpartition(".")[2] if cloud is not None else ""
        if not region or cloud is None or host.count(".") <= cloud.batch_suffix.count(".") + 1:
            return f"the account's endpoint, {host}, does not tell its region; {_WRITE_THEM}"
        return _Question(url, region, spelling_of(size), self._given.currency)

    # asking ---------------------------------------------------------------------------------------------

    def _look_up(self, question: _Question) -> None:
        try:
            self._prices = self._asked(question)
        except Exception as exc:  # whatever it is, a run or a picture of it does not fail for a price
            logger.debug("looking up prices", exc_info=True)
            self._prices = self._none(f"looking up prices failed: {exc}")

    def _asked(self, question: _Question) -> NodePrices:
        from ..service.retail import retail_items

        try:
            items = retail_items(
                question.url,
                region=question.region,
                size=question.size,
                currency=question.currency,
                seconds=_BACKGROUND,
            )
        except JoblibAzureError as exc:
            logger.debug("looking up prices: %s", exc)
            old = cache.read(question.path)
            return self._none(str(exc)) if old is None else self._of(old, question, "; it cannot be had now")
        now = time.time()
        dedicated, spot = pick(items, question.currency, now)
        found = Found(looked_up=now, dedicated=dedicated, spot=spot)
        cache.write(question.path, found)
        return self._of(found, question)

    # answers --------------------------------------------------------------------------------------------

    def _of(self, found: Found, question: _Question, more: str = "") -> NodePrices:
        if found.dedicated is None and found.spot is None:
            return self._none(
                f"Azure's price list has no {question.size} in {question.region} in {question.currency}; {_WRITE_THEM}"
            )
        day = datetime.fromtimestamp(found.looked_up, timezone.utc)
        source = f"Azure's retail list for {question.region}, looked up on {day:%Y-%m-%d}{more}"
        return self._together(found.dedicated, found.spot, source)

    def _together(self, dedicated: float | None, spot: float | None, source: str) -> NodePrices:
        """Put what the configuration says before what the list does."""
        given = self._given
        own = given.dedicated is not None or given.spot is not None
        return NodePrices(
            currency=given.currency,
            dedicated=dedicated if given.dedicated is None else given.dedicated,
            spot=spot if given.spot is None else given.spot,
            source=" and ".join(each for each in ("the configuration's" if own else "", source) if each),
        )

    def _none(self, reason: str) -> NodePrices:
        """Return what there is without the list."""
        if self._given.dedicated is None and self._given.spot is None:
            return NodePrices(currency=self._given.currency, source=reason)
        return self._together(None, None, "")


def _life(found: Found) -> float:
    return _LIFE if found.dedicated is not None or found.spot is not None else _LIFE_OF_NONE
