"""Session ids that name their endpoint, so that no table is needed. Sans I/O.

    w1.TTTTTTTTMMMMMMMMMMMMMMMMMMMM.ID           what clients get for the server's Mcp-Session-Id ID
    URI?weirpool_session=w1.TTTTTTTTMMMM...      what they get for URI, the `endpoint` event's data

T stands for the endpoint and M authenticates the rest (HMAC-SHA256), both keyed with the secret, the
upstream's name and the endpoint's URL, all in base64url. Every process with the same secret reads
them, in every order of the endpoints. They hide nothing: the server's id is readable.

An id of a server that is not visible ASCII (MCP, "Session Management") has the form `w1b.TM.BASE64`.
Each id has one signed spelling.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable

from .endpoints import Endpoint

__all__ = ["MAX_ID_BYTES", "PARAMETER", "SessionIds", "has_mark", "without_mark"]

MAX_ID_BYTES = 2048
"""Of a server's id. The client's has 32 characters more, or a third more and 33."""
PARAMETER = b"weirpool_session="
"""The query parameter that marks a URI of the old transport. The signature covers what precedes it,
and this name.
"""

_TAG_BYTES = 6
_MAC_BYTES = 15
_ID = re.compile(rb"(w1b?)\.([\w-]{8})([\w-]{20})\.([!-~]+)")
_MARK = re.compile(rb"[?&](weirpool_session=w1\.([\w-]{8})([\w-]{20}))\Z")
_ANY_MARK = re.compile(rb"[?&]weirpool_session=")
_VISIBLE = re.compile(rb"[!-~]+")


class SessionIds:
    """Makes and reads the session ids of one upstream."""

    __slots__ = ("_keys", "_named", "signs")

    def __init__(
        self, secret: bytes, upstream: str, endpoints: Iterable[Endpoint], *, signs: bool
    ) -> None:
        """`signs`: new sessions get such an id. Existing ones are read in any case."""
        self.signs = signs
        self._keys: dict[Endpoint, tuple[bytes, bytes]] = {}
        self._named: dict[bytes, Endpoint] = {}
        """By tag."""
        for endpoint in endpoints:
            key = _mac(secret, b"session\0%b\0%b" % (upstream.encode(), endpoint.place.encode()))
            tag = urlsafe_b64encode(_mac(key, b"tag")[:_TAG_BYTES])
            self._keys[endpoint] = key, tag
            self._named[tag] = endpoint

    def seal(self, session: bytes, endpoint: Endpoint) -> bytes | None:
        """The id for the client; None for an empty or too long one."""
        if not 0 < len(session) <= MAX_ID_BYTES:
            return None
        version, text = b"w1", session
        if _VISIBLE.fullmatch(session) is None:
            version, text = b"w1b", urlsafe_b64encode(session)
        key, tag = self._keys[endpoint]
        return b"%b.%b%b.%b" % (version, tag, _sign(key, version, text), text)

    def open(self, sealed: bytes) -> tuple[Endpoint, bytes] | None:
        """The endpoint and the server's id, byte for byte; None if this upstream has not made it, or
        no longer has the endpoint.
        """
        match = _ID.fullmatch(sealed)
        if match is None:
            return None
        version, tag, mac, text = match.groups()
        endpoint = self._verified(tag, mac, version, text)
        if endpoint is None:
            return None
        return endpoint, text if version == b"w1" else urlsafe_b64decode(text)

    @staticmethod
    def has_form(session: bytes) -> bool:
        """Whether an id looks like one of this class, valid or not."""
        return session.startswith((b"w1.", b"w1b."))

    def mark(self, uri: bytes, endpoint: Endpoint) -> bytes:
        """What follows `uri`, which ends with `PARAMETER`."""
        key, tag = self._keys[endpoint]
        return b"w1.%b%b" % (tag, _sign(key, b"uri", uri))

    def open_uri(self, uri: bytes) -> Endpoint | None:
        """The endpoint that a marked URI names; None as for `open`."""
        match = _MARK.search(uri)
        if match is None:
            return None
        return self._verified(match[2], match[3], b"uri", uri[: match.start(1)] + PARAMETER)

    def _verified(self, tag: bytes, mac: bytes, kind: bytes, text: bytes) -> Endpoint | None:
        endpoint = self._named.get(tag)
        if endpoint is None:
            return None
        expected = _sign(self._keys[endpoint][0], kind, text)
        return endpoint if hmac.compare_digest(expected, mac) else None


def has_mark(uri: bytes) -> bool:
    """Whether a URI has a mark, valid or not."""
    return _ANY_MARK.search(uri) is not None


def without_mark(target: bytes, uri: bytes) -> bytes:
    """A request target without the mark of a URI that `open_uri` has accepted; everything else
    stays, byte for byte.
    """
    match = _MARK.search(uri)
    path, _, query = target.partition(b"?")
    if match is None:
        return target
    left = [item for item in query.split(b"&") if item != match[1]]
    return path + b"?" + b"&".join(left) if left else path


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _sign(key: bytes, kind: bytes, text: bytes) -> bytes:
    return urlsafe_b64encode(_mac(key, kind + b"\0" + text)[:_MAC_BYTES])
