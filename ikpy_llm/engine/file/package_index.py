"""A wheel from where pip would fetch it, for environments without pip (uv makes such ones): the same settings of the
user's, read from the same places. Used for the demo model only.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import html.parser
import http.client
import json
import netrc
import os
import re
import ssl
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from ikpy_llm import files

PYPI = "https://pypi.org/simple"
FORMATS = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"  # PEP 691, then PEP 503
MOST_PAGE = 64 << 20  # bytes of a list of files
CHUNK = 1 << 20
# What settings and pages of any contents may raise.
FAILURES = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError)
FAILURES += (configparser.Error,)


@dataclass(frozen=True)
class Link:
    """A file of an index: its name, where it is, and its SHA-256 where the index says it."""

    name: str
    url: str
    sha256: str | None = None


class NotFound(OSError):
    """No file, and why."""


def fetch(name: str, version: str, folder: Path, n_bytes: int, show: Callable[[int, int], None]) -> Path:
    """The pure wheel of name==version in `folder`. show(done, total): in bytes.

    n_bytes: the most it can have. OSError, one line, that says what each place answered.
    """
    try:
        settings, answers = Settings(), []
    except FAILURES as error:
        raise NotFound(f"pip's configuration cannot be read: {_why(error)}") from None
    for place in settings.places(name):
        try:
            found = [link for link in settings.links(place) if _is_wheel(link.name, name, version)]
            if found:
                return settings.download(found[0], folder, n_bytes, show)
            answers.append(f"{_public(place)} has no wheel of {name}=={version}")
        except FAILURES as error:
            answers.append(f"{_public(place)}: {_why(error)}")
    raise NotFound("; ".join(answers) or "PIP_NO_INDEX forbids to look for it, and there are no links (PIP_FIND_LINKS)")


class Settings:
    """The user's settings for pip: variables PIP_*, those of uv where pip has none, then pip's configuration files."""

    def __init__(self):
        self.values: dict[str, str] = {}
        for file in _files():
            parser = configparser.RawConfigParser()
            parser.read(file, encoding="utf-8")
            for section in ("global", "download"):
                if parser.has_section(section):
                    self.values.update({key.replace("_", "-"): text for key, text in parser.items(section)})
        for key, names in _VARIABLES.items():
            text = next((os.environ[n] for n in names if os.environ.get(n)), None)
            if text is not None:
                self.values[key] = text

    def _list(self, key: str) -> list[str]:
        return self.values.get(key, "").split()

    def places(self, name: str) -> Iterator[str]:
        """Addresses of pages (or folders) that may list the files of a package, nearest first."""
        for place in self._list("find-links"):
            yield place if "://" in place else Path(place).expanduser().absolute().as_uri()
        if self.values.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
            for index in [*(self._list("index-url") or [PYPI])[:1], *self._list("extra-index-url")]:
                index = re.sub(r"^[\w-]+=(?=\w+://)", "", index)  # uv's indexes may have names
                yield f"{index.rstrip('/')}/{_normal(name)}/"

    def links(self, place: str) -> list[Link]:
        """Files listed at a place: a folder, a page of links, or a list as JSON."""
        local = _local(place)
        if local is not None and (local / "index.html").is_file():
            local, place = local / "index.html", urljoin(place.rstrip("/") + "/", "index.html")
        if local is not None and local.is_dir():
            return [Link(file.name, file.as_uri()) for file in sorted(local.iterdir())]
        if local is not None and local.suffix == ".whl":
            return [Link(local.name, place)]
        with self._open(place, {"Accept": FORMATS}) as answer:
            kind = answer.headers.get_content_type()
            page, base = answer.read(MOST_PAGE).decode("utf-8", "replace"), _with_user_of(place, answer.url)
        if kind.endswith("+json"):
            listed = json.loads(page)["files"]
            return [Link(f["filename"], urljoin(base, f["url"]), f.get("hashes", {}).get("sha256")) for f in listed]
        return _Page(base, page).links

    def download(self, link: Link, folder: Path, n_bytes: int, show: Callable[[int, int], None]) -> Path:
        """A file, complete and with the checksum that the index says."""
        path, digest, done = folder / link.name, hashlib.sha256(), 0
        with self._open(link.url) as answer, files.written(path) as target:
            total = int(answer.headers.get("Content-Length") or n_bytes)
            while chunk := answer.read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if done > n_bytes:
                    raise NotFound(f"{link.name} has more than the {n_bytes} bytes it should have")
                show(done, total)
        if answer.headers.get("Content-Length") and done != total:
            raise NotFound(f"{link.name} broke off after {done} of {total} bytes")
        if link.sha256 and digest.hexdigest() != link.sha256.lower():
            raise NotFound(f"the checksum of {link.name} is not the one that the index says")
        return path

    def _open(self, url: str, headers: dict[str, str] | None = None):
        parts = urlsplit(url)
        request = urllib.request.Request(_public(url), headers={"User-Agent": "ikpy", **(headers or {})})
        if login := _login(parts):
            code = base64.b64encode(":".join(login).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {code}")  # not for another host
        handlers = [urllib.request.HTTPSHandler(context=self._context(parts.hostname, parts.port))]
        if proxy := self.values.get("proxy"):
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        return urllib.request.build_opener(*handlers).open(request, timeout=float(self.values.get("timeout") or 30))

    def _context(self, host: str | None, port: int | None) -> ssl.SSLContext:
        """How certificates are checked: against pip's `cert`, the system's, or those of certifi."""
        cert, paths = self.values.get("cert"), ssl.get_default_verify_paths()
        if not cert and not (paths.cafile or paths.capath):
            try:
                import certifi  # comes with huggingface_hub's network library

                cert = certifi.where()
            except ImportError:
                pass
        where = {"capath" if os.path.isdir(cert) else "cafile": cert} if cert else {}
        context = ssl.create_default_context(**where)
        if {host, f"{host}:{port}"} & set(self._list("trusted-host")):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


# setting -> variables that set it
_VARIABLES = {
    "index-url": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
    "no-index": ("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE"),
    "cert": ("PIP_CERT", "SSL_CERT_FILE"),
    "proxy": ("PIP_PROXY",),
    "trusted-host": ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST"),
    "timeout": ("PIP_DEFAULT_TIMEOUT", "UV_HTTP_TIMEOUT"),
}


def _files() -> list[Path]:
    """pip's configuration files, those that win last."""
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    home, name = Path(os.path.expanduser("~")), "pip.ini" if os.name == "nt" else "pip.conf"
    if os.name == "nt":
        system, user = Path(os.environ.get("PROGRAMDATA", "")), Path(os.environ.get("APPDATA", ""))
        found = [system / "pip" / name, home / "pip" / name, user / "pip" / name]
    elif sys.platform == "darwin":
        support = Path("Library/Application Support/pip")
        user = home / support if (home / support).is_dir() else home / ".config/pip"
        found = ["/" / support / name, home / ".pip" / name, user / name]
    else:
        shared = [Path(d) / "pip" for d in reversed(os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")) if d]
        user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        found = [*(d / name for d in shared), Path("/etc") / name, home / ".pip" / name, user / "pip" / name]
    return [*found, Path(sys.prefix) / name, *([Path(own)] if own else [])]


class _Page(html.parser.HTMLParser):
    """The links of a page of an index."""

    def __init__(self, base: str, text: str):
        super().__init__()
        self.base, self.links = base, []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes) -> None:
        found = dict(attributes)
        if tag == "base" and found.get("href"):
            self.base = urljoin(self.base, found["href"])
        if tag == "a" and found.get("href"):
            url, fragment = urldefrag(urljoin(self.base, found["href"]))
            name = unquote(urlsplit(url).path.rpartition("/")[2])
            self.links.append(Link(name, url, fragment.partition("sha256=")[2] or None))


def _why(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).removeprefix("<urlopen error ").removesuffix(">").split()) or type(error).__name__


def _normal(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_wheel(file: str, name: str, version: str) -> bool:
    """Is it the wheel of this version for every machine?"""
    found = re.fullmatch(rf"([\w.]+)-{re.escape(version)}-(\d\w*-)?[\w.]+-none-any\.whl", file)
    return found is not None and _normal(found[1]) == _normal(name)


def _local(url: str) -> Path | None:
    """The path of a file: address."""
    return Path(urllib.request.url2pathname(urlsplit(url).path)) if url.startswith("file:") else None


def _public(url: str) -> str:
    """An address without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_user_of(url: str, other: str) -> str:
    """`other` with the user and password of `url`, if it is on the same host."""
    user, at, host = urlsplit(url).netloc.rpartition("@")
    parts = urlsplit(other)
    return urlunsplit(parts._replace(netloc=user + at + host)) if parts.netloc == host else other


def _login(parts) -> tuple[str, str] | None:
    """(user, password) for a host: of the address, or of the user's .netrc."""
    if parts.username is not None:
        return unquote(parts.username), unquote(parts.password or "")
    try:
        found = netrc.netrc().authenticators(parts.hostname or "") if parts.scheme.startswith("http") else None
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return None
    return (found[0] or "", found[2] or "") if found else None
