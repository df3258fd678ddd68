"""Strict reading of a client's heads and trailers, without h11's leniency."""

from __future__ import annotations

import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer

__all__ = ["be_strict"]

# A request line of HTTP/2.0, for example, but not HTTP/2's preface. No field line matches: a method
# has no colon.
_OTHER_VERSION = re.compile(rb"(?!PRI \* HTTP/2\.0$)[^: ]+ [^ ]+ HTTP/(?!1\.)[0-9]\.[0-9]")
_LAX = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class _StrictBuffer(ReceiveBuffer):
    """The buffer from which h11 reads heads and trailers: a line must end with CRLF and must not be
    folded.

    RFC 9112, sections 2.2 and 5.2, allow a bare LF and a folded line. If two servers read a head
    differently, a request can be smuggled past one of them. A request line must have a version of
    HTTP/1 (RFC 9110, section 2.5).
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        data = self._data
        if data.startswith(b"\r\n"):
            return super().maybe_extract_lines()
        searched = max(0, self._multiple_lines_search - 3)
        end = data.find(b"\r\n\r\n", searched)
        if _LAX.search(data, searched, len(data) - data.endswith(b"\r") if end < 0 else end + 4):
            raise h11.RemoteProtocolError(
                "a line does not end with CRLF, or is folded", error_status_hint=400
            )
        if end < 0:
            self._multiple_lines_search = len(data)
            return None
        lines: list[bytearray] = self._extract(end + 4)[:-4].split(b"\r\n")
        if _OTHER_VERSION.fullmatch(lines[0]):
            raise h11.RemoteProtocolError("not a version of HTTP/1", error_status_hint=505)
        return lines


def be_strict(protocol: Any) -> None:
    """Let an HTTP/1.1 connection that has read nothing read strictly, if its h11 is a known one."""
    connection: Any = getattr(protocol, "connection", None)
    if (
        type(getattr(connection, "_receive_buffer", None)) is ReceiveBuffer
        and not connection._receive_buffer
    ):
        connection._receive_buffer = _StrictBuffer()
