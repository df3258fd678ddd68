"""The spellings of a URI under which a server may understand it, so that a comparison cannot be passed by another one. Sans I/O."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["spellings"]

# RFC 3986, section 3; the authority without what names no host: user information, and the port below.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(?://(?:[^/?#]*@)?([^/?#]*))?([^?#]*)(.*)", re.DOTALL)
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443", "ftp": "21"}
_SPECIAL = re.compile(r"\A(https?|wss?|ftp):[/\\]*", re.IGNORECASE)  # whose slashes WHATWG URL does not count
_USER_BEHIND_BACKSLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[/\\]*[^/?#]*\\[^/?#]*@")
_ENCODED_DELIMITER = re.compile(r"%(?:25)*(?:3f|23)", re.IGNORECASE)
# What the parsers of browsers, and of much else, take away: WHATWG URL, section 4.4.
_REMOVED = re.compile(r"[\t\n\r]")
_ENDS = "".join(map(chr, range(0x21)))
_MAX_ROUNDS = 4


def spellings(uri: str) -> tuple[str, ...]:
    """The URI as it came, then as it is understood (RFC 3986, section 6.2.2, and WHATWG URL), decoded once, twice, ...

    Understood means: nothing but the host in the authority, without a default port; scheme and host in lower case; backslashes are
    slashes, runs of slashes one, dot segments resolved; `file:/a`, `file:///a` and `file://localhost/a` are `file:///a`.
    Percent-encoding is decoded until nothing changes, for a server behind a server may do so again; each step is one of the
    spellings. A template's braces stay. Raises `ValueError` for what no honest client does: encoding over and over, an encoded `?`
    or `#` together with dot segments, a backslash before an `@`, a host of the web that is not ASCII.
    """
    found = [uri]
    text = _REMOVED.sub("", uri).strip(_ENDS)
    if _USER_BEHIND_BACKSLASH.match(text):
        raise ValueError("a URI has a backslash before an @, and two readers two hosts for it")
    delimiter = _ENCODED_DELIMITER.search(text) is not None
    for _ in range(_MAX_ROUNDS):
        understood = _understand(text)
        if understood not in found:
            found.append(understood)
        decoded = _REMOVED.sub("", unquote(text))
        if decoded == text:
            if delimiter and ".." in re.split(r"[/\\?#]", text):
                # Decoded too early it hides the dots in a query, decoded late it does not.
                raise ValueError("a URI has an encoded ? or # and dot segments")
            return tuple(found)
        text = decoded
    raise ValueError(f"a URI is percent-encoded more than {_MAX_ROUNDS - 1} times over")


def _understand(uri: str) -> str:
    match = _URI.fullmatch(_SPECIAL.sub(r"\1://", uri, count=1).replace("\\", "/"))
    if match is None:
        return uri
    scheme, host, path, rest = match[1].lower(), match[2], match[3], match[4]
    if host is not None:
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
    if scheme == "file":
        if host in (None, "localhost"):
            host = ""
        path = path if path.startswith("/") else f"/{path}"
    authority = "" if host is None else f"//{host}"
    return f"{scheme}:{authority}{_resolve(path)}{rest}"


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
