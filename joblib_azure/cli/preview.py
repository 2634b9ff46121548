"""What ``joblib-azure cluster create`` would ask for: the pool's JSON, its formula, its start task. No network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cluster.images import DEFAULT_IMAGE
from ..cluster.spec import pool_spec
from ..config import AccountConfig, ClusterConfig
from ..config.values import MASK, scrub
from ..service import ImageSpec, PoolSpec

#: Node agent of the default image; a real creation asks the service for it.
_DEFAULT_AGENT = "batch.node.ubuntu 24.04"
#: Stands where only the service can tell.
_ASKED = "(asked of the service when the pool is created)"
#: Keys of the pool's JSON whose values are secrets.
_SECRET = frozenset({"password", "accountkey", "saskey"})


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A pool that was not created.

    Parameters
    ----------
    pool : mapping
        The request's body, secrets masked.
    formula, start_task : str
        The parts of it that people read; empty where there is none.
    interval : float
        Seconds between two evaluations of the formula.
    notes : tuple of str
        What cannot be known without asking.
    """

    pool: Mapping[str, Any]
    formula: str = ""
    interval: float = 0.0
    start_task: str = ""
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
            parts.append("No start task: commandLine and resourceFiles are empty.")
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
        start_task=scrub(spec.start_task.command) if spec.start_task is not None else "",
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
