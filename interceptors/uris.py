"""The spellings of a URI under which a server may understand it, so that a comparison cannot be passed by another one. Sans I/O.

Every function takes time in proportion to the URI: it is split at characters, without a pattern that could try again.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["MAX_URI", "Spellings", "spellings", "trim"]

MAX_URI = 8192
"""Characters of the longest URI that is looked at."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")  # RFC 3986, section 3.1
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443", "ftp": "21"}
"""The schemes whose slashes WHATWG URL does not count."""
# What the parsers of browsers, and of much else, take away: WHATWG URL, section 4.4.
_REMOVED = str.maketrans("", "", "\t\n\r")
_CONTROLS = "".join(map(chr, range(0x21)))
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_DELIMITERS = re.compile(r"[/\\?#]")
_QUERY = re.compile(r"[?#]")
_DRIVE = re.compile(r"[A-Za-z][:|]")
_MAX_ROUNDS = 4


class Spellings(NamedTuple):
    """How one URI may be understood."""

    same: tuple[str, ...]
    """The URI as it came, then as it is understood (RFC 3986, section 6.2.2, and WHATWG URL), decoded once, twice, ..."""
    careless: tuple[str, ...]
    """Further ones, of readers that leave out a part: the host of a `file:` URI, white space at the ends. What is denied under one
    of these is denied; nothing is allowed because of one.
    """


def trim(text: str) -> str:
    """Without what JavaScript's `trim` or Python's `strip` removes at the ends (Unicode white space, U+FEFF)."""
    return text.strip(_WHITE_SPACE)


def spellings(uri: str) -> Spellings:
    """How a URI may be understood. Raises `ValueError` for one that is denied, because no honest client sends it.

    Understood means: nothing but the host in the authority, without a default port; scheme and host in lower case; backslashes are
    slashes, runs of slashes one, dot segments resolved; `file:/a`, `file:///a` and `file://localhost/a` are `file:///a`.
    Percent-encoding is decoded until nothing changes, for a server behind a server may do so again; each step is one of the
    spellings. A template's braces stay. An error is: more than `MAX_URI` characters, encoding over and over, an encoded `?` or `#`
    together with dot segments, a backslash before an `@`, a host of the web that is not ASCII.
    """
    if len(uri) > MAX_URI:
        raise ValueError(f"a URI has more than {MAX_URI} characters")
    same, careless = {uri: None}, dict[str, None]()
    text = uri.translate(_REMOVED).strip(_CONTROLS)
    _refuse_hidden_host(text)
    delimited = False
    for _ in range(_MAX_ROUNDS):
        for spelling in {text: None, trim(text): None}:
            understood, others = _understand(spelling)
            (same if spelling is text else careless)[understood] = None
            careless |= dict.fromkeys(others)
        lowered = text.lower()
        delimited = delimited or "%3f" in lowered or "%23" in lowered
        decoded = unquote(text).translate(_REMOVED)
        if decoded == text:
            if delimited and ".." in _DELIMITERS.split(text):
                # Decoded too early it hides the dots in a query, decoded late it does not.
                raise ValueError("a URI has an encoded ? or # and dot segments")
            return Spellings(tuple(same), tuple(careless))
        text = decoded
    raise ValueError(f"a URI is percent-encoded more than {_MAX_ROUNDS - 1} times over")


def _split(uri: str) -> tuple[str, str, str] | None:
    """The scheme, what follows it up to the query and fragment, and those. None for what is no URI."""
    found = _QUERY.search(uri)
    at = len(uri) if found is None else found.start()
    scheme, colon, rest = uri[:at].partition(":")
    return (scheme, rest, uri[at:]) if colon and _SCHEME.fullmatch(scheme) else None


def _refuse_hidden_host(uri: str) -> None:
    """Raise `ValueError` for an authority with a backslash before an `@`: WHATWG URL ends the host there, RFC 3986 does not."""
    parts = _split(uri)
    if parts is None:
        return
    rest = parts[1]
    begun = rest[: len(rest) - len(rest.lstrip("/\\"))].rfind("/") + 1
    authority = rest[begun:].partition("/")[0]
    if 0 <= authority.find("\\") < authority.rfind("@"):
        raise ValueError("a URI has a backslash before an @, and two readers two hosts for it")


def _understand(uri: str) -> tuple[str, tuple[str, ...]]:
    """The URI as it is understood; and of a `file:` URI with a host, how it is understood by readers that ignore hosts, and by
    browsers, for which `file://c:/x` has a drive and no host.
    """
    parts = _split(uri)
    if parts is None:
        return uri, ()
    scheme, rest, query = parts[0].lower(), parts[1].replace("\\", "/"), parts[2].replace("\\", "/")
    if scheme in _DEFAULT_PORTS:
        rest = "//" + rest.lstrip("/")
    authority, host, path = "", None, rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        host, path = _host(scheme, authority.rpartition("@")[2]), slash + path
    if scheme == "file":
        if host in (None, "localhost"):
            host = ""
        path = path if path.startswith("/") else f"/{path}"
    path = _resolve(path)
    others: tuple[str, ...] = ()
    if scheme == "file" and host:
        others = (f"file://{path}{query}",)
        if _DRIVE.fullmatch(authority):
            others += (f"file:///{authority[0]}:{path}{query}",)
    return f"{scheme}:{'' if host is None else f'//{host}'}{path}{query}", others


def _host(scheme: str, host: str) -> str:
    """A host in one spelling. Raises `ValueError` for one of the web that is not ASCII."""
    host = host.lower()
    name, _, port = host.rpartition(":")
    if name and port.isascii() and port.isdigit():
        port = port.lstrip("0") or "0"
        host = f"{name}:{port}"
    if name and port in ("", _DEFAULT_PORTS.get(scheme)):
        host = name
    host = host.rstrip(".")
    if not host.isascii() and (scheme in _DEFAULT_PORTS or scheme == "file"):
        raise ValueError("the host of a URI is not ASCII, and may be read as another")
    return host


def _resolve(path: str) -> str:
    if "//" not in path and "/." not in path and not path.startswith("."):
        return path
    segments: list[str] = []
    parts = [part for part in path.split("/") if part]
    for part in parts:
        if part == "..":
            del segments[-1:]
        elif part != ".":
            segments.append(part)
    closed = path.endswith("/") or (bool(parts) and parts[-1] in (".", ".."))
    return ("/" if path.startswith("/") else "") + "/".join(segments) + ("/" if closed and segments else "")
