"""Where packages come from: what the configuration says, else uv's own variables, else what pip is configured with.

uv does not read pip's settings, so they are read here: its variables and its files, in pip's own order. Credentials
in them stay on the client, in the environment of its own uv: what comes from an index with credentials is downloaded
by the client and goes to the nodes through storage.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import netrc
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from ..config import ClusterConfig

_MASK = "***"
#: uv's own names, which are replaced by what is passed on.
_UV_NAMES = ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")
PYPI = "https://pypi.org/simple"
_PYPI_FILES = "files.pythonhosted.org"


@dataclass(frozen=True, kw_only=True, repr=False)
class Indexes:
    """The indexes of the client."""

    default: str | None = None
    extra: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    certificates: Path | None = None
    insecure_hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Indexes(default={self.mask(str(self.default))!r}, extra={self.mask(str(list(self.extra)))})"

    @property
    def all(self) -> tuple[str, ...]:
        """Every index that is asked."""
        return () if self.no_index else (*self.extra, self.default or PYPI)

    def uv_environment(self) -> dict[str, str]:
        """Return the environment of a uv on the client. It may hold credentials, and nobody else's does."""
        environment = {name: value for name, value in os.environ.items() if name not in _UV_NAMES}
        environment.update(UV_NO_PROGRESS="1", UV_PREVIEW_FEATURES="pylock", NO_COLOR="1", UV_PYTHON_DOWNLOADS="never")
        environment.setdefault("UV_SYSTEM_CERTS", "1")
        if self.default:
            environment["UV_DEFAULT_INDEX"] = self.default
        if self.extra:
            environment["UV_INDEX"] = " ".join(self.extra)
        if self.find_links:
            environment["UV_FIND_LINKS"] = ",".join(self.find_links)
        if self.insecure_hosts:
            environment["UV_INSECURE_HOST"] = " ".join(self.insecure_hosts)
        if self.certificates:
            environment["SSL_CERT_FILE"] = str(self.certificates)
        # Several indexes are asked as pip asks them, but the first that has a version that fits wins, not the best.
        environment.setdefault("UV_INDEX_STRATEGY", "unsafe-first-match")
        return environment

    def node_environment(self) -> dict[str, str]:
        """Return what a node's uv may know: the indexes without credentials."""
        public = [url for url in self.all if self.is_public(url)]
        environment = {"UV_INDEX_STRATEGY": "unsafe-first-match"}
        if public:
            environment["UV_DEFAULT_INDEX"] = public[-1]
        if public[:-1]:
            environment["UV_INDEX"] = " ".join(public[:-1])
        if self.insecure_hosts:
            environment["UV_INSECURE_HOST"] = " ".join(self.insecure_hosts)
        return environment

    def is_public(self, url: str) -> bool:
        """Tell whether a node may fetch a URL by itself: over the network, without credentials."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or parts.username or parts.query or self.credentials(url):
            return False
        return not (host == "localhost" or host.startswith("127.") or host == "::1")

    def node_fetches(self, url: str) -> bool:
        """Tell whether a node fetches a package's file by itself.

        An index with credentials may keep its files on another host: where there is one, only hosts that are known
        to need none are left to the nodes.
        """
        if not self.is_public(url):
            return False
        private = [index for index in self.all if urlsplit(index).scheme in ("http", "https")]
        if all(self.is_public(index) for index in private):
            return True
        open_hosts = {urlsplit(index).hostname for index in private if self.is_public(index)}
        return urlsplit(url).hostname in {*open_hosts, _PYPI_FILES}

    def credentials(self, url: str) -> tuple[str, str] | None:
        """Return user and password for a URL: those of the index on the same host, else .netrc's."""
        host = urlsplit(url).hostname
        for index in (url, *self.all, *self.find_links):
            parts = urlsplit(index)
            if parts.hostname == host and parts.username:
                return unquote(parts.username), unquote(parts.password or "")
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "")
            if found is not None:
                return found[0] or "", found[2] or ""
        return None

    def authorization(self, url: str) -> dict[str, str]:
        """Return the header that goes with the credentials for a URL, if there are any."""
        found = self.credentials(url)
        if found is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(":".join(found).encode()).decode()}

    def mask(self, text: str) -> str:
        """Return a text without the credentials."""
        for url in (*self.all, *self.find_links):
            parts = urlsplit(url)
            for secret in (parts.password, unquote(parts.password or ""), f"{parts.username}:{parts.password}"):
                if parts.password and secret:
                    text = text.replace(secret, _MASK)
            if parts.username and not parts.password:  # a token alone
                text = text.replace(parts.username, _MASK)
        return re.sub(r"(?<=://)[^/@\s]+(?=@)", _MASK, text)


def without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_indexes(config: ClusterConfig, environ: Mapping[str, str] | None = None) -> Indexes:
    """Return the indexes that a cluster's packages come from."""
    environ = os.environ if environ is None else environ
    pip = _pip_settings(environ)
    packages = config.python_packages
    default = packages.index_url.get_secret_value() if packages.index_url else None
    extra = tuple(url.get_secret_value() for url in packages.extra_index_urls)
    uv_default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    uv_extra = _words(environ.get("UV_INDEX", "")) + _words(environ.get("UV_EXTRA_INDEX_URL", ""))
    # uv allows name=url.
    uv_extra = tuple(re.sub(r"^[A-Za-z0-9._-]+=", "", url) for url in uv_extra)
    uv_links = tuple(link for link in environ.get("UV_FIND_LINKS", "").split(",") if link)
    certificates = environ.get("PIP_CERT") or pip.get("cert") or environ.get("SSL_CERT_FILE")
    certificates = certificates or environ.get("REQUESTS_CA_BUNDLE")
    return Indexes(
        default=default or uv_default or pip.get("index-url") or None,
        extra=extra or uv_extra or _words(pip.get("extra-index-url", "")),
        find_links=uv_links or tuple(_link(link) for link in _words(pip.get("find-links", ""))),
        no_index=pip.get("no-index", "").lower() in ("1", "true", "yes", "on"),
        certificates=Path(certificates) if certificates and Path(certificates).is_file() else None,
        insecure_hosts=_words(pip.get("trusted-host", "")),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _link(link: str) -> str:
    return link if "://" in link else str(Path(link).expanduser().absolute())


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Read what `pip config list` lists, for ``pip install``, without starting pip."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in environ.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            found[name[4:].lower().replace("_", "-")] = value
    return found


def _pip_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield pip's configuration files, the strongest last: https://pip.pypa.io/en/stable/topics/configuration/."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path.home()
    for folder in reversed(environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    if sys.platform == "darwin":
        yield home / "Library" / "Application Support" / "pip" / "pip.conf"
    if sys.platform == "win32":
        yield Path(environ.get("APPDATA", home)) / "pip" / "pip.ini"
    yield Path(environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip" / "pip.conf"
    yield Path(sys.prefix) / ("pip.ini" if sys.platform == "win32" else "pip.conf")
    if named:
        yield Path(named)
