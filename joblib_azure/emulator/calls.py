"""A request on its way to a handler, and the handler's answer on its way out: the seam between HTTP and the service."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from . import conditions, errors, odata, times
from .schema import Operation
from .state import Resource
from .tokens import Principal

if TYPE_CHECKING:
    from .engine import Engine

MAX_RESULTS = 1000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One authenticated, well-formed request. Query names are lower case."""

    engine: Engine
    operation: Operation
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: dict[str, Any]
    path: str
    principal: Principal
    #: Asked in an api-version before the newest, with its shapes.
    legacy: bool = False

    @property
    def base(self) -> str:
        return self.engine.endpoint

    def check_conditions(self, item: Resource) -> None:
        """Raise unless the request's conditional headers hold for the resource."""
        read = self.operation.method in ("GET", "HEAD")
        conditions.check(self.headers, item.etag, item.modified, read=read)

    def flag(self, name: str) -> bool:
        """A boolean query parameter."""
        value = self.query.get(name, "false").lower()
        if value not in ("true", "false"):
            raise errors.invalid_query(name, value, "true or false is expected.")
        return value == "true"

    # -- answers ------------------------------------------------------------------------------------------------------

    def done(self, item: Resource | None = None, url: str | None = None, **headers: str) -> Answer:
        """Success without a body."""
        found = {"DataServiceId": url or self.base + quote(self.path), **headers}
        if item is not None:
            found |= _validators(item)
        return Answer(status=self.operation.success, headers=found)

    def json(self, shape: dict[str, Any], item: Resource | None = None, metadata: str = "") -> Answer:
        """Success with a JSON body."""
        full = {"odata.metadata": f"{self.base}/$metadata#{metadata}", **shape}
        return Answer(
            status=self.operation.success,
            headers=_validators(item) if item is not None else {},
            body=json.dumps(full, separators=(",", ":")).encode(),
        )

    def single(self, shape: dict[str, Any], item: Resource, type_name: str, metadata: str) -> Answer:
        """A GET of one resource, with `$select`."""
        self._check_expand()
        selection = self._selection(type_name)
        return self.json(selection.apply(shape) if selection else shape, item, metadata)

    def listing(
        self,
        items: Iterable[Any],
        shape: Callable[[Any], dict[str, Any]],
        *,
        metadata: str,
        key: Callable[[Any], int] | None = None,
        fields: Mapping[str, odata.Field] | None = None,
        type_name: str | None = None,
    ) -> Answer:
        """One page of a list, with `$filter`, `$select` and a link to the next page."""
        self._check_expand()
        source = self.query.get("$filter")
        keep = odata.parse_filter(source, fields) if source is not None and fields is not None else None
        selection = self._selection(type_name) if type_name else None
        if key is None:
            numbered = list(enumerate(items, 1))
            rows: Iterable[Any] = numbered
            check = keep
            keep = (lambda row: check(row[1])) if check else None
            page = odata.page(rows, lambda row: int(row[0]), after=self._after(), size=self._size(), keep=keep)
            found = [item for _, item in page.items]
        else:
            page = odata.page(items, key, after=self._after(), size=self._size(), keep=keep)
            found = page.items
        shapes = [shape(item) for item in found]
        body: dict[str, Any] = {"value": [selection.apply(each) for each in shapes] if selection else shapes}
        if page.next_key is not None:
            again = {name: value for name, value in self.query.items() if name != "$skiptoken"}
            body["odata.nextLink"] = (
                f"{self.base}{quote(self.path)}?{urlencode({**again, '$skiptoken': page.next_key})}"
            )
        return self.json(body, metadata=metadata)

    def _selection(self, type_name: str) -> odata.Selection | None:
        source = self.query.get("$select")
        return odata.Selection(source, type_name) if source else None

    def _check_expand(self) -> None:
        expand = self.query.get("$expand")
        if expand is not None and expand.strip().lower() not in ("", "stats"):
            raise errors.invalid_query("$expand", expand, "Only 'stats' can be expanded.")

    def _size(self) -> int:
        return self._integer("maxresults", MAX_RESULTS, 1, MAX_RESULTS)

    def _after(self) -> int:
        return self._integer("$skiptoken", 0, 0, 1 << 62)

    def _integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            raise errors.invalid_query(name, text, "An integer is expected.") from None
        if not low <= value <= high:
            raise errors.out_of_range_query(name, text, low, high)
        return value


def _validators(item: Resource) -> dict[str, str]:
    return {"ETag": f'"{item.etag}"', "Last-Modified": times.http_date(item.modified)}


Handler = Callable[[Call], Awaitable[Answer]]
_handlers: dict[str, Handler] = {}


def handles(name: str) -> Callable[[Handler], Handler]:
    """Register the handler of an operation, by its name in ``wire_schema.json``."""

    def register(handler: Handler) -> Handler:
        _handlers[name] = handler
        return handler

    return register


def handler_of(name: str) -> Handler | None:
    return _handlers.get(name)
