"""Messages besides events: the request, the response head, and an interceptor's own response.

These objects hold what authors see and change. They know neither sockets nor the chain; the proxy
sets the attributes marked as internal.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpx
import structlog

from pools import decode_json, encode_json

from .content import Contradiction, media_type
from .errors import Misused, NotJson
from .event import UNSET, Event, not_json
from .operation import Operation
from .paths import normal_path, quote_path
from .preflight import announces_body, is_preflight
from .refusals import error_format, error_json, only_id, request_ids
from .tasks import TASK_OF, StartSoon, start_task

__all__ = [
    "Headers",
    "Request",
    "Response",
    "ResponseHead",
    "address",
    "forget_body",
]

Headers = httpx.Headers
"""Header fields by case-insensitive name.

`multi_items()` and `get_list()` return fields that occur more than once.
"""

HeadersLike = Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers


class Request:
    """A client's request. The upstream gets it as `on_request` leaves it.

    `Request(path=...)` in a test accepts a path in any spelling that a client may use.
    """

    trace_id: str | None = None
    """The id of the trace, 32 hexadecimal digits; None while traces are off. On MCP routes the
    client can name it in the body, which `on_request` with `wants_body` sees.
    """
    operation: Operation | None = None
    """What `telemetry.genai` has seen of the LLM or MCP call so far; None: it does not look."""
    body_replaced: bool = False
    """Whether an interceptor called `replace_body`."""
    _is_forgotten = False

    def __init__(
        self,
        *,
        method: str = "GET",
        path: str = "/",
        raw_path: bytes | None = None,
        query: bytes = b"",
        headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers = (),
        body: bytes | bytearray | memoryview | None = b"",
        route: str = "/",
        dialect: str = "generic",
        client: str | None = None,
        has_body: bool | None = None,
        request_id: str = "",
    ) -> None:
        """`headers`: a mapping of text, or pairs of bytes. `body` None: it is not collected.
        `has_body` None: derived from `body` and the headers.
        """
        self.method = method
        if raw_path is None:  # normalise as the proxy does for a request target
            raw_path = path.encode("ascii") if path.isascii() else quote_path(path)
            path = normal_path(raw_path).decode("latin-1")
        self._path = path
        self._raw_path = raw_path
        self.query = query
        """The query, byte for byte, without the question mark."""
        self.headers: Headers = _headers(headers)
        """The headers as the client sent them, with the request's id. Changes are sent upstream.

        Without connection headers (`Connection` and the fields it names, `TE`, `Upgrade`), and
        without `Forwarded`, `X-Forwarded-*` and `X-Real-IP` unless the client is a trusted proxy.
        They include credentials: keep them out of logs.
        """
        self.route = route
        """The route's path prefix. Changing `path` does not change the route."""
        self.dialect = dialect
        """The route's `dialect`: openai, anthropic, mcp, generic or abort."""
        self.client = client
        """The client's IP address; IPv4 is never written as IPv6. None for a Unix socket.

        Of a request from a proxy in `trusted_proxies`, the address that this proxy reports.
        """
        self.request_id = request_id
        """The id of the exchange in log lines and in the header `log.request_id_header`.

        Taken over from the client, if it sends one: do not rely on it being unique.
        """
        self.target: bytes = raw_path + b"?" + query if query else raw_path
        """Path and query as they arrived, whatever interceptors change."""
        self.state: dict[str, Any] = {}
        """A dict that all interceptors of this exchange share."""
        self._body = body
        self.has_body: bool = (
            bool(body) or announces_body(self.headers.raw) if has_body is None else has_body
        )
        """Whether the client sends a body, collected or not."""
        self.sessions: Any = None  # internal: of the upstream (`dialects.mcp_sessions`)
        self.spawn: StartSoon | None = None  # internal: use `start_soon`
        self.asked: Any = None  # internal: the owner of the running hook

    @property
    def client_name(self) -> str | None:
        """The client in logs: `state["client_key"]`, which `api_keys` sets, or else `client`."""
        key = self.state.get("client_key")
        return self.client if key is None else str(key)

    @property
    def path(self) -> str:
        """The path as servers interpret it, for policy checks.

        Dot segments are resolved, repeated slashes collapsed, letters percent-decoded, so
        `/x/../%61dmin` is `/admin`. Setting it replaces `raw_path`. Raises `ValueError` for a path
        that does not start with "/" or cannot be encoded as UTF-8.
        """
        return self._path

    @path.setter
    def path(self, path: str) -> None:
        if not path.startswith("/"):
            raise ValueError('a request\'s path must start with "/"')
        try:
            raw_path = quote_path(path)
        except UnicodeEncodeError:
            raise ValueError(
                "a request's path contains a lone surrogate, which UTF-8 cannot encode"
            ) from None
        self._path, self._raw_path = path, raw_path

    @property
    def raw_path(self) -> bytes:
        """The path as it arrived. It is sent upstream unless `path` is set."""
        return self._raw_path

    @property
    def body(self) -> bytes:
        """A copy of the request's body, b"" if there is none.

        Raises `RuntimeError` if no interceptor of the route sets `wants_body`, and after the
        response head is sent.
        """
        return bytes(self._known_body())

    def json(self) -> Any:
        """The body decoded as JSON, a new object at each call.

        Raises `NotJson`, and `RuntimeError` as `body` does.
        """
        try:
            return decode_json(self._known_body())
        except (ValueError, RecursionError) as error:
            raise not_json(error, "this request's body") from None

    def replace_body(self, data: bytes | str | None = None, *, json: Any = UNSET) -> None:
        """Send another body: either `data` (text is encoded as UTF-8) or `json`.

        `json` also sets Content-Type and removes Content-Encoding. The client's digests
        (`Content-Digest` and the like) are not sent upstream. Raises `ValueError` unless exactly
        one is given, `TypeError` or `msgspec.EncodeError` for a value that JSON cannot encode.
        """
        if (data is None) == (json is UNSET):
            raise ValueError("replace_body takes either data or json")
        if json is not UNSET:
            self._body = encode_json(json)
            self.headers["content-type"] = "application/json"
            self.headers.pop("content-encoding", None)
        else:
            assert data is not None
            self._body = data.encode() if isinstance(data, str) else data
        self.body_replaced = True

    def set_body(self, body: bytes | bytearray | memoryview | None) -> None:
        """Internal: store the collected body, or None for one that is not collected."""
        self._body, self._is_forgotten = body, False

    @property
    def is_preflight(self) -> bool:
        """Whether this is a CORS preflight: the browser asks whether a page may send a request.

        OPTIONS with exactly one `Origin` and one `Access-Control-Request-Method`, no body, and no
        method-override header (Fetch, "CORS-preflight request"). It carries no credentials. Let it
        pass where you check credentials or count requests.
        """
        return is_preflight(self.method, self.headers.raw) and not self.has_body

    def refuse(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers = (),
    ) -> Response:
        """Make an error response in the shape of the route's dialect, to return from `on_request`.

        `kind` is for programs (`quota_exceeded`), `message` for people. With `dialect: mcp` the
        error is a JSON-RPC response with the id of the request in the body; the id is null if the
        body has no single request or is not collected. Raises `ValueError` for a status outside
        400 to 599.
        """
        if not 400 <= status <= 599:
            raise ValueError(
                f"a refusal's status must be 400 to 599, not {status}: "
                "return a Response for any other answer"
            )
        response = Response(
            status=status,
            headers=headers,
            json=error_json(self.dialect, status, kind, message, self._call_id()),
        )
        if error_format(self.dialect).is_json_rpc and self._body is None:
            response.unaddressed = (status, kind, message)
        response.kind = kind
        return response

    def _call_id(self) -> float | str | None:
        is_json_rpc = error_format(self.dialect).is_json_rpc
        if not is_json_rpc or self.method != "POST" or self._body is None:
            return None
        try:
            return only_id(request_ids(self.json()))
        except NotJson:
            return None

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task `async_fn(*args)`. It is cancelled when the exchange ends.

        For `on_request`, `on_response` and tasks; hooks of a stream use `context.start_soon`. If
        the task raises, `on_error` applies as for a hook. Never blocks. Raises `TypeError` if
        `async_fn` is a coroutine.
        """
        start_task(self, TASK_OF.get() or self.asked, async_fn, args)

    @property
    def log(self) -> Any:
        """A structlog logger, bound to the route. In an exchange, its lines have the request's
        `request_id`, `client` and `path`.
        """
        return structlog.get_logger("interceptors").bind(route=self.route)

    def _known_body(self) -> bytes | bytearray | memoryview:
        if self._is_forgotten:
            raise RuntimeError(
                "this request's body was freed when the response head was sent: "
                "store what the stream needs in on_request"
            )
        if self._body is None:
            raise BodyUnread(
                "this request's body is not collected: "
                "set wants_body = True on the interceptor that reads it"
            )
        return self._body

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"  # nothing that could be secret


class BodyUnread(Misused, RuntimeError):
    """The body of a request was read although it is not collected."""


def _headers(given: HeadersLike) -> Headers:
    if isinstance(given, httpx.Headers):
        return given
    return httpx.Headers(dict(given) if isinstance(given, Mapping) else list(given))


def forget_body(request: Request) -> None:
    """Free the body. The sender of the response head calls this."""
    request._body, request._is_forgotten = None, request._body is not None


def address(request: Request, response: Response) -> None:
    """Add the request's id to a refusal that was made before the body was collected."""
    if response.unaddressed is not None and request._body:
        response.body = encode_json(
            error_json(request.dialect, *response.unaddressed, request._call_id())
        )


def _check_status(status: int) -> None:
    if not 200 <= status <= 999:
        raise ValueError(f"a response's status must be 200 to 999, not {status}")


class ResponseHead:
    """Status and headers of the upstream's response.

    `on_response` may change both. In later hooks they show what the client gets.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers,
        request: Request | None = None,
    ) -> None:
        self.status = status
        self.headers: Headers = _headers(headers)
        self.request: Request = request or Request()

    @property
    def status(self) -> int:
        """The status. Setting it raises `ValueError` for a value outside 200 to 999."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        _check_status(status)
        self._status = status

    @property
    def media_type(self) -> str:
        """The media type of Content-Type, in lower case, without parameters.

        "" if there is none, or if several values differ. The proxy refuses the latter before any
        hook is called.
        """
        try:
            return media_type(self.headers.raw)
        except Contradiction:
            return ""

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.media_type}>"


class Response:
    """An interceptor's own response: bytes, text, JSON, or a stream of events.

    `Response(json=...)`, `Response("text")`, `Response(events=...)`. It is sent to the client
    unchanged; no other interceptor sees it.
    """

    def __init__(
        self,
        body: bytes | str = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers = (),
        json: Any = UNSET,
        events: Iterable[Event] | AsyncIterable[Event] | None = None,
    ) -> None:
        """Content-Type is set by the kind of body, unless `headers` has one.

        An async iterator of events runs in the exchange and is closed when it ends. Raises
        `ValueError` for a status outside 200 to 999, and for more than one kind of body.
        """
        _check_status(status)
        if (json is not UNSET) + (events is not None) + bool(body) > 1:
            raise ValueError("a response takes only one of body, json and events")
        self.made_by: Any = None
        """Internal: the interceptor that returned it."""
        self.unaddressed: tuple[int, str, str] | None = None
        """Internal: status, kind and message of a refusal made before the body was collected."""
        self.kind: str | None = None
        """Internal: the kind of a refusal."""
        self.status = status
        self.headers: Headers = httpx.Headers(_headers(headers))
        self.events = events
        content_type = (
            "text/plain; charset=utf-8" if isinstance(body, str) else "application/octet-stream"
        )
        if json is not UNSET:
            body, content_type = encode_json(json), "application/json"
        elif events is not None:
            content_type = "text/event-stream"
        self.body: bytes = body.encode() if isinstance(body, str) else body
        if self.body or events is not None:
            self.headers.setdefault("content-type", content_type)

    def __repr__(self) -> str:
        return f"<Response {self.status}>"
