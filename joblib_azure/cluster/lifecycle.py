"""A pool's coming, changing and going: create or reuse, resize, delete, each of them safe to do twice."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from ..config import ClusterConfig, PoolSize
from ..errors import (
    AuthenticationError,
    ClusterError,
    ConfigurationError,
    ConflictError,
    PoolDiffersError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceError,
)
from ..service import BatchService, PoolState
from .connections import Connections
from .floor import Floor, floor_of, with_floor
from .images import named_image, resolve_image
from .spec import autoscale_spec, differences, pool_spec, recorded_size, with_size
from .waiting import Progress, Teller, Waiting

logger = logging.getLogger(__name__)

#: Without these a session cannot use a pool: its workers would be counted wrongly, or its tasks not start.
NEEDED = frozenset({"vmSize", "maxTasksPerNode", "containerImage"})
#: Seconds between two looks at a pool that is going, or that is being resized.
_FIRST_LOOK, _LAST_LOOK = 0.1, 10.0


class Patience:
    """A deadline, and looks that become rarer; each says what is waited for."""

    def __init__(
        self, pool: str, timeout: float, progress: Progress | None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self.cancelled = cancelled
        self._pool, self._timeout, self._teller = pool, timeout, Teller(progress)
        self._begun, self._pause = time.monotonic(), _FIRST_LOOK

    def wait(self, doing: str, hint: str) -> None:
        """Sleep until the next look. :raises ClusterError: the deadline is over; `hint` says what to do."""
        elapsed = time.monotonic() - self._begun
        if elapsed > self._timeout:
            raise ClusterError(f"pool {self._pool!r}: still {doing} after {self._timeout:g} s. {hint}", pool=self._pool)
        self._teller.tell(Waiting(pool=self._pool, doing=doing, elapsed=elapsed, timeout=self._timeout))
        time.sleep(min(self._pause, max(0.0, self._timeout - elapsed) + 0.01))
        self._pause = min(self._pause * 1.5, _LAST_LOOK)


def ensure_pool(
    connections: Connections,
    config: ClusterConfig,
    *,
    strict: bool,
    timeout: float,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PoolState | None:
    """See to it that the pool is there: reuse it, or create it; one that is being deleted is waited out first.

    Parameters
    ----------
    strict : bool
        Whether every setting has to be as the configuration says, and not only those that a session needs.

    Returns
    -------
    PoolState or None
        The pool that was there; None where it was created.

    Raises
    ------
    PoolDiffersError
        Where a pool of that name is there and another one, with each difference.
    ClusterError
        Where a pool of that name is still being deleted at the deadline, or its image is not supported.
    ServiceError
    """
    name, patience = config.name, Patience(config.name, timeout, progress, cancelled)
    while not cancelled():
        try:
            found = connections.batch.pool(name)
        except ResourceNotFoundError:
            try:
                create_pool(connections, config)
            except ResourceExistsError as exc:
                # It was deleted a moment ago, or somebody else was faster.
                logger.debug("pool %s: %s", name, exc)
                patience.wait("appearing and disappearing", "Use another name")
                continue
            return None
        if found.state == "active":
            check(connections, config, found, strict=strict)
            return found
        patience.wait(
            f"waiting for the end of a pool of that name, which is {found.state}",
            "Wait until it is gone, or use another name",
        )
    return None


def create_pool(connections: Connections, config: ClusterConfig) -> None:
    """Create a pool; through the management plane where only that can."""
    if config.custom_image is not None:
        image, agent = resolve_image(config, ())
    else:
        image, agent = resolve_image(config, connections.batch.supported_images())
    spec = pool_spec(config, connections.account, image, agent)
    try:
        if spec.management_reasons:
            with contextlib.closing(connections.management(spec.management_reasons)) as management:
                management.create_pool(spec)
        else:
            connections.batch.create_pool(spec)
    except AuthenticationError as exc:
        raise AuthenticationError(
            f"{exc.message}. Who may use a pool but not create one needs it to be there: ask its owner to run "
            f"`joblib-azure cluster create` for {config.name!r}",
            **exc.context,
        ) from exc
    logger.info("pool %s created: %s, %s", config.name, config.vm_size, image)


def check(connections: Connections, config: ClusterConfig, found: PoolState, *, strict: bool) -> None:
    """Compare a pool with its configuration. :raises PoolDiffersError: it differs in what matters."""
    image, agent = named_image(config)
    wanted = pool_spec(config, connections.account, image or found.spec.image, agent or found.spec.node_agent_sku)
    different = differences(config, wanted, found)
    fatal = [each for each in different if not each.changeable and (strict or each.key in NEEDED)]
    if fatal:
        raise PoolDiffersError(
            f"a pool {config.name!r} is there, and differs in what is fixed when a pool is created:\n  "
            + "\n  ".join(map(str, different))
            + "\nUse the pool's own settings, or another name, or delete it (`joblib-azure cluster delete "
            f"{config.name}`)",
            pool=config.name,
        )
    if different:
        hint = "; `joblib-azure cluster resize` changes its size" if any(each.changeable for each in different) else ""
        logger.warning("pool %s is used as it is: %s%s", config.name, "; ".join(map(str, different)), hint)


# resize -------------------------------------------------------------------------------------------------


def new_size(found: PoolState, size: PoolSize, dedicated: Any, spot: Any, **settings: Any) -> PoolSize:
    """Return the bounds that a pool is to have.

    Parameters
    ----------
    found : PoolState
    size : PoolSize
        Its bounds now.
    dedicated, spot : int or tuple of int, optional
        A number is the number of nodes in a pool that does not scale, and the upper bound in one that does.

    Raises
    ------
    ConfigurationError
    """
    values: dict[str, Any] = size.model_dump()
    scales = found.autoscale is not None and settings.get("autoscale_formula") != "FIXED"
    scales = scales or settings.get("autoscale_formula") not in (None, "FIXED")
    for name, given in (("dedicated_nodes", dedicated), ("spot_nodes", spot)):
        if given is None:
            continue
        if isinstance(given, int):
            given = (min(values[name]["min"], given) if scales else given, given)
        values[name] = {"min": given[0], "max": given[1]}
    if settings.get("autoscale_formula") is None and found.autoscale is None:
        values["autoscale_formula"] = "FIXED"
    values |= {name: value for name, value in settings.items() if value is not None}
    return PoolSize.read(values, "resize")


def is_fixed(size: PoolSize) -> bool:
    """Whether a pool of these bounds has targets in place of a formula."""
    return size.autoscale_formula == "FIXED" or all(
        bounds.min == bounds.max for bounds in (size.dedicated_nodes, size.spot_nodes)
    )


def resize_pool(batch: BatchService, found: PoolState, size: PoolSize, patience: Patience) -> None:
    """Give a pool other bounds; one that is being resized is waited for.

    Raises
    ------
    ClusterError
        Where it is still being resized at the deadline.
    ServiceError
    """
    pool = found.id
    while True:
        try:
            if is_fixed(size):
                if found.autoscale is not None:
                    batch.disable_autoscale(pool)
                batch.resize_pool(pool, size.dedicated_nodes.max, size.spot_nodes.max, deallocation=size.deallocation)
            else:
                spec = autoscale_spec(size, found.task_slots_per_node)
                formula = _keeping_floor(found, size, spec.formula)
                batch.enable_autoscale(pool, formula, spec.interval, etag=found.etag)
            break
        except ConflictError as exc:
            patience.wait(
                f"waiting until it can be resized ({exc.message.rpartition(': ')[2].rstrip('.')})",
                "Its resize goes on; try again later",
            )
            found = batch.pool(pool)
    if recorded_size(found) is not None:
        try:
            batch.update_pool(pool, metadata=with_size(found.spec.metadata, size))
        except ServiceError as exc:
            logger.warning("pool %s: its new bounds could not be recorded in its metadata: %s", pool, exc)


def _keeping_floor(found: PoolState, size: PoolSize, formula: str) -> str:
    """A session's floor outlives a resize, within the new bounds."""
    floor = floor_of(found.autoscale.formula) if found.autoscale is not None else None
    if floor is None or floor.until <= datetime.now(timezone.utc):
        return formula
    kept = Floor(
        dedicated=min(floor.dedicated, size.dedicated_nodes.max),
        spot=min(floor.spot, size.spot_nodes.max),
        until=floor.until,
    )
    try:
        return with_floor(formula, kept)
    except ValueError as exc:
        raise ConfigurationError(str(exc)) from exc


# the end ------------------------------------------------------------------------------------------------


def delete_pool(batch: BatchService, pool: str, *, wait: bool, patience: Patience) -> None:
    """Delete a pool, and wait until it is gone if asked to; one that is not there is no error."""
    batch.delete_pool(pool)
    while wait and not patience.cancelled():
        try:
            state = batch.pool(pool).state
        except ResourceNotFoundError:
            return
        if state == "active":
            batch.delete_pool(pool)  # somebody made it again under our hands, or the request was lost
        patience.wait(f"waiting until it is deleted ({state})", "The service goes on deleting it")
