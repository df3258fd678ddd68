"""`Dialect`: what the proxy must know about the protocol of a route.

One subclass and one file for each dialect; instances are stateless and live as long as the process.
`relay`, `worker` and `exchange` ask the dialect of their route and never compare its name. The base
class gives the defaults, which are those of the generic dialect. The shape of error bodies and the
readers of answers are in `interceptors` (`refusals`, `dialects.answers`), which cannot import this
package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from interceptors import Request
from interceptors.dialects.answers import has_one_answer, may_be_mislabelled
from interceptors.hooks import Owner
from interceptors.refusals import error_json, only_id
from interceptors.sse import Fields, encode_event
from pools import encode_json

from ..errors import RequestRefused
from ..http.headers import HeaderList
from ..http.place import Place
from ..upstream import Endpoint, UpstreamSessions

__all__ = ["Dialect", "FinalEvent", "encode_error"]

FinalEvent: TypeAlias = tuple[bytes | None, bytes | None]
"""The event type and the data of an event that ends a stream; None matches any."""


class Dialect:
    """The protocol of a route. Methods take the `Request` that the interceptors saw, None if none
    did.
    """

    name: ClassVar[str]
    """As `dialect` in the configuration and `Request.dialect`."""
    final_events: ClassVar[tuple[FinalEvent, ...]] = ()
    """Events after which a stream is complete, so that `reconnect` does not resume it."""
    clean_end_is_final: ClassVar[bool] = False
    """Whether a stream that ends without an error is complete, whatever its last event was."""
    has_error_events: ClassVar[bool] = True
    """Whether a failure inside a stream is sent as an event; otherwise the stream is only reset."""
    carries_trace: ClassVar[bool] = False
    """Whether the body of a request carries the trace context (`telemetry.meta`)."""
    listening: ClassVar[frozenset[str]] = frozenset()
    """Methods whose event streams `timeouts.idle` does not cut, unless the route lists its own."""

    def surround(
        self, owners: Sequence[Owner], places: Mapping[Endpoint, Place], sessions: UpstreamSessions
    ) -> list[Owner]:
        """A route's interceptors with those of the dialect around them."""
        return list(owners)

    def may_be_mislabelled(self, path: str) -> bool:
        """Whether the first bytes of a body, not only its content type, decide that it is a stream."""
        return may_be_mislabelled(self.name, path)

    def has_one_answer(self, path: str) -> bool:
        """Whether clients read JSON in a response as one text, also under a type of JSON lines."""
        return has_one_answer(self.name, path)

    def session_of(self, request: Request | None) -> bytes | None:
        """The key of the session that the target names, for `session_affinity`.

        None leaves the choice to the `Mcp-Session-Id` header.
        """
        return None

    def note_response(
        self, request: Request, endpoint: Endpoint, *, is_encoded: bool, headers: HeaderList
    ) -> None:
        """Note where a response comes from, before the interceptors see its head.

        `headers`: the client's.
        """

    def open_calls(self, request: Request | None) -> Sequence[float | str]:
        """The ids of the requests inside a request that still wait for a response."""
        return ()

    def can_resume(self, request: Request | None) -> bool:
        """Whether the client may resume a stream, so that an error must not end the call."""
        return False

    def error_body(self, refusal: RequestRefused, request: Request | None) -> bytes:
        """A failure as the JSON body of a response."""
        return encode_json(self._error(refusal, only_id(self.open_calls(request)))) + b"\n"

    def error_events(
        self, refusal: RequestRefused, request: Request | None, path: str
    ) -> tuple[bytes, ...]:
        """A failure as encoded events, to be sent between two others. `path`: in normal form."""
        return (encode_error("error", self._error(refusal)),)

    def _error(self, refusal: RequestRefused, ident: float | str | None = None) -> dict[str, Any]:
        return error_json(self.name, refusal.status, refusal.kind, refusal.message, ident)


def encode_error(event: str | None, body: dict[str, Any]) -> bytes:
    """An error event with JSON data; `event` None: without an event type."""
    return encode_event(Fields(event, encode_json(body).decode(), None, None))
