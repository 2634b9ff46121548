"""Which image a pool's nodes have, and the node agent that goes with it: asked of the service, not guessed."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from ..config import ClusterConfig
from ..errors import ClusterError
from ..service import ImageSpec, SupportedImage

logger = logging.getLogger(__name__)

#: The image of a pool that names none. Ubuntu 24.04 LTS carries Python 3.12 as python3.
DEFAULT_IMAGE = ImageSpec(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
#: What the service says of images with a container runtime.
_CONTAINERS = "DockerCompatible"
#: An image whose support ends sooner is warned of.
_SOON = timedelta(days=90)


def named_image(config: ClusterConfig) -> tuple[ImageSpec | None, str | None]:
    """Return the image and the node agent that a configuration names itself; None for what it leaves to us."""
    if config.custom_image is not None:
        return ImageSpec(id=config.custom_image), config.node_agent_sku
    image = config.image
    if image is None:
        return None, config.node_agent_sku
    named = ImageSpec(publisher=image.publisher, offer=image.offer, sku=image.sku, version=image.version)
    return named, config.node_agent_sku


def resolve_image(
    config: ClusterConfig, supported: Iterable[SupportedImage], now: datetime | None = None
) -> tuple[ImageSpec, str]:
    """Return the image and the node agent of a new pool.

    Parameters
    ----------
    config : ClusterConfig
    supported : iterable of SupportedImage
        As the service lists them; not looked at where an image of one's own is named.
    now : datetime, optional

    Raises
    ------
    ClusterError
        Where the service knows no such image, or its support has ended; with the nearest that it knows.
    """
    now = now or datetime.now(timezone.utc)
    wanted, agent = named_image(config)
    if wanted is not None and wanted.id:
        # Only its owner knows what is in it; the configuration has seen to it that the agent is named.
        return wanted, agent or ""
    if wanted is not None:
        return wanted, _agent_of(config, wanted, list(supported), now)
    images = [each for each in supported if each.os == "linux"]
    if config.container_image is not None:
        return _container_host(images, now)
    return DEFAULT_IMAGE, _agent_of(config, DEFAULT_IMAGE, images, now)


def _agent_of(config: ClusterConfig, wanted: ImageSpec, images: list[SupportedImage], now: datetime) -> str:
    found = [each for each in images if _names(each.image) == _names(wanted)]
    if config.node_agent_sku is not None:
        if not found:
            # An image that is not listed can work all the same (a derived one, say); the service has the last word.
            logger.warning("the service does not list the image %s; going on with the node agent given", wanted)
        return config.node_agent_sku
    if not found:
        known = {"/".join(_names(each.image)): each for each in images}
        near = difflib.get_close_matches("/".join(_names(wanted)), known, n=3, cutoff=0.4)
        hint = f" Near to it: {', '.join(near)}." if near else ""
        raise ClusterError(
            f"image: the service does not support {wanted}.{hint} With nodeAgentSku, an image that is not listed can "
            "be tried",
        )
    alive = [each for each in found if each.end_of_life is None or each.end_of_life > now]
    if not alive:
        ended = max(each.end_of_life for each in found if each.end_of_life is not None)
        others = [str(each.image) for each in images if each.verified and _is_alive(each, now)]
        raise ClusterError(
            f"image: Batch's support of {wanted} ended on {ended:%d %B %Y}, and new pools of it are refused. Verified "
            f"ones: {', '.join(others) or 'none'}"
        )
    best = max(alive, key=lambda each: each.verified)
    if not best.verified:
        logger.warning("image: %s is not verified by Batch with %s; it may not work", wanted, best.node_agent_sku)
    if best.end_of_life is not None and best.end_of_life - now < _SOON:
        logger.warning("image: Batch's support of %s ends on %s", wanted, f"{best.end_of_life:%d %B %Y}")
    return best.node_agent_sku


def _container_host(images: list[SupportedImage], now: datetime) -> tuple[ImageSpec, str]:
    """The newest verified Ubuntu with a container runtime; another Linux where there is none."""
    able = [each for each in images if _CONTAINERS in each.capabilities and _is_alive(each, now)]
    if not able:
        raise ClusterError(
            "containerImage: the service lists no image with a container runtime; name one that has it as image"
        )
    best = max(able, key=lambda each: (each.verified, "ubuntu" in each.node_agent_sku, each.node_agent_sku))
    return best.image, best.node_agent_sku


def _is_alive(image: SupportedImage, now: datetime) -> bool:
    return image.end_of_life is None or image.end_of_life > now


def _names(image: ImageSpec) -> tuple[str, str, str]:
    return image.publisher.lower(), image.offer.lower(), image.sku.lower()
