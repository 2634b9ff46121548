"""What ``joblib-azure cluster create`` would ask for, and what it costs: the pool's JSON, its formula, its start task.

Nobody is asked but Azure's public price list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cluster.images import DEFAULT_IMAGE
from ..cluster.spec import pool_spec, users_lines
from ..config import AccountConfig, Bounds, ClusterConfig, PoolSize
from ..config.values import MASK, scrub
from ..prices import PriceLookup
from ..report import Estimate, NodeHours, NodePrices
from ..service import ImageSpec, PoolSpec
from .common import bounds_line

#: Node agent of the default image; a real creation asks the service for it.
_DEFAULT_AGENT = "batch.node.ubuntu 24.04"
#: Stands where only the service can tell.
_ASKED = "(asked of the service when the pool is created)"
#: Keys of the pool's JSON whose values are secrets.
_SECRET = frozenset({"password", "accountkey", "saskey"})


@dataclass(frozen=True, kw_only=True)
class HourlyCost:
    """What the pool costs an hour, at its smallest and at its largest.

    Parameters
    ----------
    least, most : Estimate
    nodes : str
        How many there are then, in words.
    """

    least: Estimate
    most: Estimate
    nodes: str

    def __str__(self) -> str:
        prices, least, most = self.most.prices, self.least, self.most
        if prices.free:
            return f"Cost: none, since {prices.source}."
        if most.amount is None:
            return f"Cost of {self.nodes}: not known, since {most.why}."
        # The least may be known where the most is not, and is of less use.
        if least.hours == most.hours:
            said = f"{most.short} an hour"
        elif not least.hours.total:
            said = f"nothing without nodes, {most.short} an hour with all of them"
        else:
            said = f"{least.short} an hour with the fewest, {most.short} with all of them"
        return f"Cost of {self.nodes}, estimated: {said} ({prices})."

    def data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"least": self.least.data(), "most": self.most.data()}


def hourly_cost(config: ClusterConfig, prices: NodePrices) -> HourlyCost:
    """Return what the pool costs by its bounds; one without a formula has all its nodes at all times."""
    size = config.pool_size
    if config.fixed:
        both = {name: Bounds(min=each.max, max=each.max) for name, each in _bounds(size).items()}
        size = size.model_copy(update=both)
    dedicated, spot = _bounds(size).values()
    return HourlyCost(
        least=Estimate(hours=NodeHours(dedicated=dedicated.min, spot=spot.min), prices=prices),
        most=Estimate(hours=NodeHours(dedicated=dedicated.max, spot=spot.max), prices=prices),
        nodes=bounds_line(size),
    )


def _bounds(size: PoolSize) -> dict[str, Bounds]:
    return {"dedicated_nodes": size.dedicated_nodes, "spot_nodes": size.spot_nodes}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A pool that was not created.

    Parameters
    ----------
    pool : mapping
        The request's body, secrets masked.
    formula, start_task : str
        The parts of it that people read, of the start task the configuration's own; empty where there is none.
    interval : float
        Seconds between two evaluations of the formula.
    cost_per_hour : HourlyCost
    notes : tuple of str
        What cannot be known without asking.
    """

    pool: Mapping[str, Any]
    formula: str = ""
    interval: float = 0.0
    start_task: str = ""
    cost_per_hour: HourlyCost
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [json.dumps(self.pool, indent=2, ensure_ascii=False)]
        if self.formula:
            parts.append(f"Autoscale formula, evaluated every {self.interval:.0f} s:\n{_indented(self.formula)}")
        else:
            parts.append("No autoscale formula: the pool has its nodes at all times, and they cost at all times.")
        if self.start_task:
            parts.append(f"Start task, on each node when it starts:\n{_indented(self.start_task)}")
        else:
            parts.append("commandLine is empty: the start task runs nothing of yours.")
        parts.append(str(self.cost_per_hour))
        parts += [f"Note: {note}." for note in self.notes]
        return "\n\n".join(parts)


def preview(config: ClusterConfig, account: AccountConfig | None) -> Preview:
    """Return what would be created.

    Parameters
    ----------
    config : ClusterConfig
    account : AccountConfig, optional
        Its cloud and its container registry are used; the public cloud's and none where it is not known.

    Raises
    ------
    ConfigurationError
        Where the formula cannot be made.
    """
    notes = []
    prices = PriceLookup(config.vm_size, None if account is None else account.batch_endpoint, config.prices)
    prices.start()
    if account is None:
        notes.append("the account is not known; its private container registry and its cloud cannot be shown")
        account = AccountConfig(
            batch_account="unknown", batch_endpoint="https://unknown.batch.azure.com", storage_account="unknown"
        )
    image, agent = _image(config)
    if _ASKED in (agent, image.publisher):
        notes.append("image and node agent are those of the service's list of supported images")
    spec = pool_spec(config, account, image, agent)
    if spec.management_reasons:
        notes.append(
            f"{', '.join(spec.management_reasons)}: created through Azure Resource Manager, signed in with Entra"
        )
    return Preview(
        pool=_masked(_body(spec, notes)),
        formula=spec.autoscale.formula if spec.autoscale is not None else "",
        interval=spec.autoscale.interval.total_seconds() if spec.autoscale is not None else 0.0,
        start_task=scrub(users_lines(spec.start_task)),
        cost_per_hour=hourly_cost(config, prices.wait()),
        notes=tuple(notes),
    )


def _image(config: ClusterConfig) -> tuple[ImageSpec, str]:
    agent = config.node_agent_sku or ""
    if config.custom_image is not None:
        return ImageSpec(id=config.custom_image), agent
    if config.image is not None:
        given = config.image
        named = ImageSpec(publisher=given.publisher, offer=given.offer, sku=given.sku, version=given.version)
        return named, agent or _ASKED
    if config.container_image is not None:
        return ImageSpec(publisher=_ASKED, offer=_ASKED, sku=_ASKED), _ASKED
    return DEFAULT_IMAGE, agent or _DEFAULT_AGENT


def _body(spec: PoolSpec, notes: list[str]) -> dict[str, Any]:
    if spec.management_reasons:
        try:
            from ..service.management import pool_parameters

            body: dict[str, Any] = pool_parameters(spec).as_dict()
            return body
        except ImportError:
            notes.append("shown as Batch itself would be asked, since azure-mgmt-batch is not installed")
    from ..service.poolmodels import create_options

    return dict(create_options(spec).as_dict())


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_masked(each) for each in value]
    if isinstance(value, str):
        return MASK if key.lower() in _SECRET else scrub(value)
    return value


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
