"""The spellings that servers may read a URI as, so that none of them bypasses a comparison.

Every function is linear in the URI's length. Sans I/O.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["MAX_URI", "Spellings", "fold", "spellings", "trim"]

MAX_URI = 8192
"""Characters of the longest URI that is accepted."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")  # RFC 3986, section 3.1
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443", "ftp": "21"}
"""WHATWG URL ignores the number of slashes after these schemes."""
# Removed by browsers and other parsers: WHATWG URL, section 4.4.
_REMOVED = str.maketrans("", "", "\t\n\r")
_CONTROLS = "".join(map(chr, range(0x21)))
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_DELIMITERS = re.compile(r"[/\\?#]")
_QUERY = re.compile(r"[?#]")
_DRIVE = re.compile(r"[A-Za-z][:|]")
_DRIVE_PATH = re.compile(r"[A-Za-z]:[/\\]")
_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*)|(0[0-7]+)|([0-9]+)")  # WHATWG URL, "IPv4 number parser"
_MAX_ROUNDS = 4


class Spellings(NamedTuple):
    """How servers may read one URI."""

    same: tuple[str, ...]
    """The URI as it arrived, then normalised (RFC 3986, section 6.2.2, and WHATWG URL), decoded
    once, twice, ...
    """
    careless: tuple[str, ...]
    """Spellings of readers that ignore a part (the host of a `file:` URI, white space at the ends,
    `url:`) or know Windows paths. Use them to deny, never to allow.
    """


def trim(text: str) -> str:
    """Remove what JavaScript's `trim` or Python's `strip` removes: Unicode white space, U+FEFF."""
    return text.strip(_WHITE_SPACE)


def fold(text: str) -> str:
    """Fold case as the most tolerant reader does: dotted and dotless i are equal, and so are
    composed and decomposed characters (file systems).
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return folded.replace("\u0131", "i").replace("i\u0307", "i")


def spellings(uri: str) -> Spellings:
    """Every spelling that a server may read a URI as.

    Normalisation leaves only the host in the authority, without a default port; folds the case of
    scheme and host; turns backslashes into slashes; merges slashes; resolves dot segments; and
    reads `file:/a` and `file://localhost/a` as `file:///a`. Percent-encoding is decoded until
    nothing changes, because servers in a chain may decode again; each step is one spelling. The
    braces of a template stay.

    Raises `ValueError` for a URI that no honest client sends: more than `MAX_URI` characters,
    encoded several times over, an encoded `?` or `#` together with dot segments, a backslash before
    an `@`, or a web host that is not ASCII.
    """
    if len(uri) > MAX_URI:
        raise ValueError(f"a URI has more than {MAX_URI} characters")
    same, careless = {uri: None}, dict[str, None]()
    text = uri.translate(_REMOVED).strip(_CONTROLS)
    _refuse_hidden_host(text)
    delimited = False
    for _ in range(_MAX_ROUNDS):
        for spelling in {text: None, trim(text): None, _unwrapped(text): None}:
            understood, others = _understand(spelling)
            (same if spelling is text else careless)[understood] = None
            careless |= dict.fromkeys(others)
        lowered = text.lower()
        delimited = delimited or "%3f" in lowered or "%23" in lowered
        decoded = unquote(text).translate(_REMOVED)
        if decoded == text:
            if delimited and ".." in _DELIMITERS.split(text):
                # Decoded early it puts the dots into a query; decoded late it does not.
                raise ValueError("a URI has an encoded ? or # and dot segments")
            return Spellings(tuple(same), tuple(careless))
        text = decoded
    raise ValueError(f"a URI is percent-encoded more than {_MAX_ROUNDS - 1} times over")


def _split(uri: str) -> tuple[str, str, str] | None:
    """Scheme, hierarchical part, and query with fragment; None if it is not a URI."""
    found = _QUERY.search(uri)
    at = len(uri) if found is None else found.start()
    scheme, colon, rest = uri[:at].partition(":")
    return (scheme, rest, uri[at:]) if colon and _SCHEME.fullmatch(scheme) else None


def _refuse_hidden_host(uri: str) -> None:
    """Refuse a backslash before an `@`: WHATWG URL ends the host there, RFC 3986 does not."""
    parts = _split(uri)
    if parts is None:
        return
    rest = parts[1]
    begun = rest[: len(rest) - len(rest.lstrip("/\\"))].rfind("/") + 1
    authority = rest[begun:].partition("/")[0]
    if 0 <= authority.find("\\") < authority.rfind("@"):
        raise ValueError("a URI has a backslash before an @, so that its host is ambiguous")


def _unwrapped(text: str) -> str:
    """Remove the `<URL:...>` that urllib and Java's `URL` remove (RFC 1738, appendix)."""
    text = trim(text)
    if text.startswith("<") and text.endswith(">"):
        text = trim(text[1:-1])
    return trim(text[4:]) if text[:4].lower() == "url:" else text


def _understand(uri: str) -> tuple[str, list[str]]:
    """The normalised URI, and what other readers make of it."""
    if uri.startswith(("/", "\\")) or _DRIVE_PATH.match(uri):  # a path: servers accept it, too
        return uri, _of_file(None, "", uri.replace("\\", "/"), "")
    parts = _split(uri)
    if parts is None:
        return uri, []
    scheme, rest, query = parts[0].lower(), parts[1].replace("\\", "/"), parts[2].replace("\\", "/")
    of_web = scheme in _DEFAULT_PORTS
    if of_web:
        rest = "//" + rest.lstrip("/")
    authority, host, path = "", None, rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        host, path = _host(scheme, authority.rpartition("@")[2]), slash + path
    if scheme == "file":
        if host in (None, "localhost"):
            host = ""
        path = path if path.startswith("/") else f"/{path}"
        return f"file://{host}{_resolve(path)}{query}", _of_file(host, authority, path, query)
    path = _resolve(path)
    if host is None:  # `new URL(u).pathname` is the same with an empty authority
        return f"{scheme}:{path}{query}", [
            f"{scheme}://{'' if path.startswith('/') else '/'}{path}{query}"
        ]
    others = [f"{scheme}://{other}{path}{query}" for other in _other_addresses(host)]
    if of_web and path in ("", "/"):  # RFC 3986, section 6.2.3: the two are one
        others.append(f"{scheme}://{host}{'' if path else '/'}{query}")
    return f"{scheme}://{host}{path}{query}", others


def _of_file(host: str | None, authority: str, path: str, query: str) -> list[str]:
    """Other readings of a `file:` URI: without its host, with a drive in place of a host (browsers
    read `file://c:/x` so), and on Windows. `host` None: it is a plain path.
    """
    found = [f"file://{_resolve(path)}{query}"] if host or host is None else []
    beyond = (path + query).lstrip("/")
    if beyond.startswith("?/"):  # `//?/C:/x`, `//?/UNC/server/x`
        path, query = beyond[1:], ""
        path = f"/{path[4:]}" if path[:5].lower() == "/unc/" else path
    name = host or ""
    if not name and path.startswith("//"):
        name, slash, rest = path.lstrip("/").partition("/")
        if not _DRIVE.fullmatch(name):
            found.append(f"file://{name.lower()}{_resolve(slash + rest)}{query}")
    if _DRIVE.fullmatch(authority):
        path = f"/{authority}{path}"
    segments = _segments(path, keeps_drive=True)
    drive = bool(segments) and _DRIVE.fullmatch(segments[0]) is not None
    if drive or name:
        if drive:
            segments[0], name = f"{segments[0][0]}:", ""
        # Windows drops dots and spaces at the end of a name; a colon begins a stream's name.
        plain = [
            part if drive and not at else part.partition(":")[0].rstrip(". ")
            for at, part in enumerate(segments)
        ]
        found += [
            f"file://{name.partition(':')[0]}/{'/'.join(parts)}{query}"
            for parts in (segments, plain)
        ]
    return found


def _host(scheme: str, host: str) -> str:
    """A normalised host. Raises `ValueError` for a web host that is not ASCII."""
    host = host.lower()
    name, _, port = host.rpartition(":")
    if name and port.isascii() and port.isdigit():
        port = port.lstrip("0") or "0"
        host = f"{name}:{port}"
    if name and port in ("", _DEFAULT_PORTS.get(scheme)):
        host = name
    host = host.rstrip(".")
    if not host.isascii() and (scheme in _DEFAULT_PORTS or scheme == "file"):
        raise ValueError(
            "the host of a URI is not ASCII, so that servers may read it as another host"
        )
    return _address(host) if scheme in _DEFAULT_PORTS else host


def _address(host: str) -> str:
    """A normalised IP address, as `inet_aton` reads it: `0x7f.1` is `127.0.0.1`."""
    if host.startswith("["):
        inside, bracket, port = host[1:].partition("]")
        try:
            return f"[{IPv6Address(inside)}]{port}" if bracket and "%" not in inside else host
        except ValueError:
            return host
    name, colon, port = host.partition(":")
    found = [_NUMBER.fullmatch(part) for part in name.rstrip(".").split(".")[:5]]
    if not all(found) or len(found) > 4 or len(name) > 64:
        return host
    numbers = [
        int(match[1][2:] or "0", 16) if match[1] else int(match[0], 8 if match[2] else 10)
        for match in found
        if match
    ]
    *first, last = numbers
    if any(number > 255 for number in first) or last >= 256 ** (5 - len(numbers)):
        return host
    value = last + sum(number << 8 * (3 - at) for at, number in enumerate(first))
    return f"{IPv4Address(value)}{colon}{port}"


def _other_addresses(host: str) -> list[str]:
    """Equivalents of an IPv6 address, with its port: without its zone, and mapped IPv4."""
    inside, bracket, port = host[1:].partition("]")
    if not bracket or not host.startswith("["):
        return []
    try:
        address = IPv6Address(inside.partition("%")[0])
    except ValueError:
        return []
    mapped = address.ipv4_mapped
    return [f"[{address}]{port}"] * ("%" in inside) + (
        [] if mapped is None else [f"{mapped}{port}"]
    )


def _resolve(path: str) -> str:
    if "//" not in path and "/." not in path and not path.startswith("."):
        return path
    segments = _segments(path)
    last = path.rpartition("/")[2]
    closed = last in ("", ".", "..")
    return (
        ("/" if path.startswith("/") else "")
        + "/".join(segments)
        + ("/" if closed and segments else "")
    )


def _segments(path: str, *, keeps_drive: bool = False) -> list[str]:
    """The segments of a path, dot segments resolved. `keeps_drive`: `..` does not remove a drive
    (WHATWG URL, "shorten").
    """
    segments: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not (keeps_drive and len(segments) == 1 and _DRIVE.fullmatch(segments[0])):
                del segments[-1:]
        elif part not in ("", "."):
            segments.append(part)
    return segments
