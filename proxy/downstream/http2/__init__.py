"""HTTP/2 connections of clients (RFC 9113).

`h2` turns nearly every stream error into a connection error, so the frames are the proxy's own
(`http.frames`), and only HPACK's tables are a library's.

- `connection`: one connection, from its preface to its end, and the tasks of its streams;
- `input`: what its frames mean, and what a client may spend;
- `output`: what it sends, and whose turn it is;
- `stream`: one request and its response.
"""

from __future__ import annotations

from .connection import Http2Connection

__all__ = ["Http2Connection"]
