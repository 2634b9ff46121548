"""How many cores a VM size has: read from Azure's naming, or from the emulator's own family.

https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions: family, number of vCPUs, then (for constrained
sizes) a dash and the vCPUs that are left, additive features, accelerator, version.
"""

from __future__ import annotations

import re

_EMULATED = re.compile(r"emulated_c(?P<cores>[1-9]\d{0,3})", re.IGNORECASE)
_AZURE = re.compile(
    r"(?:standard|basic)_(?P<family>[a-z]+)(?P<cores>\d{1,3})(?:-(?P<constrained>\d{1,3}))?"
    r"(?P<features>[a-z]*)(?:_[a-z0-9]+)*",
    re.IGNORECASE,
)
#: Series whose number is not the number of vCPUs: size of the series to vCPUs.
_A = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 8: 8, 9: 16, 10: 8, 11: 16}
_D = {1: 1, 2: 2, 3: 4, 4: 8, 11: 2, 12: 4, 13: 8, 14: 16}
_D_V2 = {**_D, 5: 16, 15: 20}
_G = {number: 1 << number for number in range(1, 6)}
_OLD = {
    **{f"{tier}_a{number}": cores for tier in ("basic", "standard") for number, cores in _A.items()},
    **{f"standard_{series}{number}": cores for series in ("d", "ds") for number, cores in _D.items()},
    **{f"standard_{series}{number}_v2": cores for series in ("d", "ds") for number, cores in _D_V2.items()},
    **{f"standard_{series}{number}": cores for series in ("g", "gs") for number, cores in _G.items()},
}


def cores_of(vm_size: str) -> int | None:
    """The number of cores of a size, or None for a name that is no size of Azure's nor of the emulator's."""
    name = vm_size.strip().lower().removesuffix("_promo")
    if name in _OLD:
        return _OLD[name]
    match = _EMULATED.fullmatch(name)
    if match:
        return int(match["cores"])
    match = _AZURE.fullmatch(name)
    if match is None:
        return None
    return int(match["constrained"] or match["cores"]) or None
