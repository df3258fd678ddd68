"""The spellings of a URI under which a server may understand it, so that a comparison cannot be
passed by another one. Sans I/O.

Every function takes time in proportion to the URI: it is split at characters, without a pattern
that could try again.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["MAX_URI", "Spellings", "fold", "spellings", "trim"]

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
_DRIVE_PATH = re.compile(r"[A-Za-z]:[/\\]")
_NUMBER = re.compile(r"(0[xX][0-9A-Fa-f]*)|(0[0-7]+)|([0-9]+)")  # WHATWG URL, "IPv4 number parser"
_MAX_ROUNDS = 4


class Spellings(NamedTuple):
    """How one URI may be understood."""

    same: tuple[str, ...]
    """The URI as it came, then as it is understood (RFC 3986, section 6.2.2, and WHATWG URL),
    decoded once, twice, ...
    """
    careless: tuple[str, ...]
    """Further ones, of readers that leave out a part (the host of a `file:` URI, white space at the
    ends, `url:`), or that know Windows. What is denied under one of these is denied; nothing is
    allowed because of one.
    """


def trim(text: str) -> str:
    """Without what JavaScript's `trim` or Python's `strip` removes at the ends (Unicode white
    space, U+FEFF).
    """
    return text.strip(_WHITE_SPACE)


def fold(text: str) -> str:
    """Without case, as the most tolerant reader compares: also without a dot on i or none, and
    composed or not (file systems).
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return folded.replace("\u0131", "i").replace("i\u0307", "i")


def spellings(uri: str) -> Spellings:
    """How a URI may be understood. Raises `ValueError` for one that is denied, because no honest
    client sends it.

    Understood means: nothing but the host in the authority, without a default port; scheme and host
    in lower case; backslashes are slashes, runs of slashes one, dot segments resolved; `file:/a`,
    `file:///a` and `file://localhost/a` are `file:///a`. Percent-encoding is decoded until nothing
    changes, for a server behind a server may do so again; each step is one of the spellings. A
    template's braces stay. An error is: more than `MAX_URI` characters, encoding over and over, an
    encoded `?` or `#` together with dot segments, a backslash before an `@`, a host of the web that
    is not ASCII.
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
    """Raise `ValueError` for an authority with a backslash before an `@`: WHATWG URL ends the host
    there, RFC 3986 does not.
    """
    parts = _split(uri)
    if parts is None:
        return
    rest = parts[1]
    begun = rest[: len(rest) - len(rest.lstrip("/\\"))].rfind("/") + 1
    authority = rest[begun:].partition("/")[0]
    if 0 <= authority.find("\\") < authority.rfind("@"):
        raise ValueError("a URI has a backslash before an @, and two readers two hosts for it")


def _unwrapped(text: str) -> str:
    """Without the `<URL:...>` that Python's urllib and Java's `URL` take off a URI (RFC 1738,
    appendix).
    """
    text = trim(text)
    if text.startswith("<") and text.endswith(">"):
        text = trim(text[1:-1])
    return trim(text[4:]) if text[:4].lower() == "url:" else text


def _understand(uri: str) -> tuple[str, list[str]]:
    """The URI as it is understood, and how others understand it."""
    if uri.startswith(("/", "\\")) or _DRIVE_PATH.match(
        uri
    ):  # a path, which many a server takes in place of a URI
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
    """How else a `file:` URI is understood: by readers that ignore its host, by browsers, for which
    `file://c:/x` has a drive and no host, and on Windows. `host` None: it is a path.
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
        # Dots and spaces at its end are no part of a name, and a colon begins the name of a stream.
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
    return _address(host) if scheme in _DEFAULT_PORTS else host


def _address(host: str) -> str:
    """An IP address in one spelling, as WHATWG URL and `inet_aton` read it: `2130706433` and
    `0x7f.1` are `127.0.0.1`.
    """
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
    """What an IPv6 address stands for besides, with its port: itself without a zone, and an IPv4
    one.
    """
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
    """The segments of a path without dot segments. `keeps_drive`: there is no way up from a drive
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
