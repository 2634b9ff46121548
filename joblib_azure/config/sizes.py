"""What the name of a VM size tells: cores, GPUs, the processor's architecture.

https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions: family, number of vCPUs, for constrained
sizes a dash and the vCPUs that are left, features in lower case, accelerator, version. The first series have numbers
of another meaning (`sizetable`). A series that the table has comes in the table's numbers alone, so that a slip of the
hand is told; a series that is newer than the table is taken by the convention.
"""

from __future__ import annotations

import difflib
import re
from functools import cache

from .sizetable import CONSTRAINED, IRREGULAR, REGULAR

_NAME = re.compile(
    r"standard_(?P<family>[a-z]+)(?P<cores>[1-9]\d{0,3})(?:-(?P<active>[1-9]\d{0,3}))?(?P<rest>[a-z]*(?:_[a-z0-9]+)*)",
    re.IGNORECASE,
)
_VERSION = re.compile(r"_v[1-9](?:_promo)?$", re.IGNORECASE)
#: Nodes of the local cluster.
_EMULATED = re.compile(r"emulated_c([1-9]\d{0,3})", re.IGNORECASE)
#: https://learn.microsoft.com/azure/virtual-machines/sizes/overview#gpu-accelerated. NP has FPGAs, NM video encoders.
_GPU_FAMILIES = frozenset({"NC", "NCC", "ND", "NG", "NV"})
#: Sizes with more than this many vCPUs exist in no series of the table.
_MAX_CORES = 2048


@cache
def known_sizes() -> dict[str, int]:
    """Return each documented size by its name, with its cores."""
    found = dict(IRREGULAR)
    for numbers, series in REGULAR.items():
        for name in series.split():
            found.update({f"Standard_{name.replace('#', number)}": int(number) for number in numbers.split()})
    for numbers, series in CONSTRAINED.items():
        for name in series.split():
            for number in numbers.split():
                found[f"Standard_{name.replace('#', number)}"] = int(number.partition("-")[2])
    return found


@cache
def _by_lower_case() -> dict[str, int]:
    return {name.lower(): cores for name, cores in known_sizes().items()}


@cache
def _spellings() -> dict[str, str]:
    return {name.lower(): name for name in known_sizes()}


def spelling_of(size: str) -> str:
    """Return a size as Azure spells it, for those who mind capitals; one that is not documented as it is.

    >>> spelling_of("standard_d4S_V5")
    'Standard_D4s_v5'
    """
    return _spellings().get(size.lower(), size)


@cache
def _known_series() -> frozenset[tuple[str, str]]:
    return frozenset(series for name in known_sizes() if (series := _series_of(name)) is not None)


def _series_of(size: str) -> tuple[str, str] | None:
    found = _NAME.fullmatch(size)
    return (found["family"].upper(), found["rest"].lower()) if found else None


def cores_of(size: str) -> int:
    """Return the vCPUs of a size, those that are active where it is a constrained one.

    Raises
    ------
    ValueError
        Where there is no such size as far as is known, with the nearest name and the way out.

    Examples
    --------
    >>> cores_of("Standard_D4s_v5"), cores_of("Standard_E16-8s_v5"), cores_of("Standard_DS3_v2")
    (4, 8, 4)
    """
    if (cores := _by_lower_case().get(size.lower())) is not None:
        return cores
    if emulated := _EMULATED.fullmatch(size):
        return int(emulated[1])
    found, series = _NAME.fullmatch(size), _series_of(size)
    if found is not None and series is not None and series not in _known_series() and _VERSION.search(found["rest"]):
        whole, active = int(found["cores"]), int(found["active"] or found["cores"])
        if series[0] in {family for family, _ in _known_series()} and active <= whole <= _MAX_CORES:
            return active
    hint = f"; did you mean {near!r}? If not" if (near := nearest_size(size)) else "; if it is right"
    raise ValueError(f"no size of this name is known{hint}, give the number of its cores as `cores`")


def nearest_size(size: str) -> str | None:
    """Return the documented size whose name is nearest, or None where none is near."""
    # Without what nearly all names begin with, which would make any two of them alike.
    names = {name.lower().removeprefix("standard_"): name for name in known_sizes()}
    stem = size.lower().replace(" ", "_")
    head, _, tail = stem.partition("_")
    if difflib.get_close_matches(head, ["standard"]):
        stem = tail
    near = difflib.get_close_matches(stem, list(names), n=1, cutoff=0.6)
    return names[near[0]] if near else None


def has_gpu(size: str) -> bool:
    """Whether nodes of this size have a GPU, or a part of one."""
    series = _series_of(size)
    return series is not None and series[0] in _GPU_FAMILIES


def architecture_of(size: str) -> str:
    """Return ``aarch64`` for sizes with Arm processors (``p`` among the features), else ``x86_64``.

    The GB200 sizes of the ND family have Arm processors and no ``p``.
    """
    series = _series_of(size)
    if series is None:
        return "x86_64"
    features, _, kind = series[1].partition("_")
    return "aarch64" if "p" in features or (series[0] == "ND" and kind.startswith(("gb", "ndr_gb"))) else "x86_64"
