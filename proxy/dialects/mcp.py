"""`mcp`: the Model Context Protocol, over Streamable HTTP and the old transport (2024-11-05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interceptors import Request
from interceptors.hooks import Owner

from ..errors import RequestRefused
from ..http.headers import HeaderList, client_origin, outer_prefix
from ..http.place import Place
from ..upstream import Endpoint, UpstreamSessions
from .dialect import Dialect, encode_error
from .mcp_interceptors import state_of, surround

__all__ = ["Mcp"]


class Mcp(Dialect):
    """JSON-RPC messages. What the proxy itself does with them is in `mcp_interceptors`."""

    name = "mcp"
    clean_end_is_final = True
    carries_trace = True
    listening = frozenset(("GET",))

    def surround(
        self, owners: Sequence[Owner], places: Mapping[Endpoint, Place], sessions: UpstreamSessions
    ) -> list[Owner]:
        return surround(owners, places, sessions)

    def session_of(self, request: Request | None) -> bytes | None:
        """On the old transport, the target of a POST."""
        state = state_of(request)
        return None if state is None else state.session

    def note_response(
        self, request: Request, endpoint: Endpoint, *, is_encoded: bool, headers: HeaderList
    ) -> None:
        state = state_of(request)
        if state is not None:
            state.endpoint, state.is_encoded = endpoint, is_encoded
            if request.method == "GET":
                state.outer_prefix = outer_prefix(headers)
                origin = client_origin(headers, scheme="http") or ""
                state.public_host = origin.partition("://")[2].lower()

    def open_calls(self, request: Request | None) -> Sequence[float | str]:
        state = state_of(request)
        return () if state is None else state.open_calls

    def can_resume(self, request: Request | None) -> bool:
        """Revisions 2025-03-26 to 2025-11-25: once events with ids have passed."""
        state = state_of(request)
        return state is not None and state.can_resume

    def error_events(
        self, refusal: RequestRefused, request: Request | None, path: str
    ) -> tuple[bytes, ...]:
        """A JSON-RPC error response for each open call."""
        return tuple(
            encode_error("message", self._error(refusal, ident))
            for ident in self.open_calls(request)
        )
