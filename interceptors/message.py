"""What passes besides events: the request, the response's head, and an answer that an interceptor
gives by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import httpx
import structlog

from pools import decode_json, encode_json

from .content import Contradiction, media_type
from .errors import Misused, NotJson
from .event import UNSET, Event, not_json
from .paths import normal_path, quote_path
from .refusals import error_format, error_json, only_id, request_ids

__all__ = [
    "TASK_OF",
    "Headers",
    "Request",
    "Response",
    "ResponseHead",
    "StartSoon",
    "address",
    "forget_body",
    "is_preflight",
    "start_task",
]

Headers = httpx.Headers
"""Header fields by name, in any case; `multi_items()` and `get_list()` show those that occur more
than once.
"""

StartSoon = Callable[[Any, Callable[..., Awaitable[object]], tuple[Any, ...]], None]
"""How an exchange runs a task: for whom (a `hooks.Owner`), what, and with what arguments."""

# With these some servers run another method than OPTIONS. A browser sends none of them with a
# preflight.
_METHOD_OVERRIDES = (b"x-http-method-override", b"x-http-method", b"x-method-override")

TASK_OF: ContextVar[Any] = ContextVar("interceptors.TASK_OF", default=None)
"""In a task that an interceptor has started, and in those that it starts: whose it is (a
`hooks.Owner`).
"""


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request is a CORS preflight, judged by its head: see `Request.is_preflight`."""
    if method != "OPTIONS":
        return False
    listed = list(headers)
    names = [name.lower() for name, _ in listed]
    return (
        names.count(b"origin") == 1
        and names.count(b"access-control-request-method") == 1
        and not any(name in names for name in _METHOD_OVERRIDES)
        and not _announces_body(listed)
    )


def _announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name.lower() == b"transfer-encoding"
        or (name.lower() == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )


class Request:
    """A client's request, before it goes upstream. What `on_request` changes here is what the
    upstream gets.

    `state` is a dict that every interceptor of the exchange shares. `Request(path=...)` takes a
    path as a client may spell it.
    """

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
    ) -> None:
        """`headers`: a mapping of text, or pairs of bytes. `has_body` None: found out from `body`
        and the headers.
        """
        self.method = method
        if raw_path is None:  # a test's, mostly: understood as the proxy understands what comes
            raw_path = path.encode("ascii") if path.isascii() else quote_path(path)
            path = normal_path(raw_path).decode("latin-1")
        self._path = path
        self._raw_path = raw_path
        self.query = query
        """Byte for byte, without the question mark."""
        self.headers: Headers = _headers(headers)
        """As the client sent them, without those of its connection (`Connection` and what that
        names, `TE`, `Upgrade`), and without `Forwarded`, `X-Forwarded-*` and `X-Real-IP` of a
        client that is no trusted proxy. What is set here goes upstream. Credentials among them:
        keep them out of logs.
        """
        self.route = route
        """The route's path prefix. It has been chosen; changing the path changes no route."""
        self.dialect = dialect
        """What the route's `dialect` says that it speaks: openai, anthropic, mcp, generic or abort.
        """
        self.client = client
        """The client's address; that of an IPv4 client is never written as IPv6."""
        self.target: bytes = raw_path + b"?" + query if query else raw_path
        """What the client asked for: path and query as they came, whatever interceptors make of
        them.
        """
        self.sessions: Any = None
        """What the process knows of the MCP sessions of the route's upstream
        (`dialects.mcp_sessions`). The proxy's own note.
        """
        self.state: dict[str, Any] = {}
        self._body = body
        self.has_body: bool = (
            bool(body) or _announces_body(self.headers.raw) if has_body is None else has_body
        )
        """Whether the client sends a body, also one that passes unread."""
        self.body_replaced: bool = False
        self._is_forgotten = False
        """Whether an interceptor has called `replace_body`."""
        self.spawn: StartSoon | None = None
        """The exchange's own; use `start_soon`."""
        self.asked: Any = None
        """Whose hook is running: the chain's own note."""

    @property
    def path(self) -> str:
        """The path as servers understand it: dot segments resolved, no runs of slashes, letters not
        percent-encoded.

        So `/x/../%61dmin` is `/admin` here, and a check of it cannot be passed by another spelling.
        Setting it replaces `raw_path`.
        """
        return self._path

    @path.setter
    def path(self, path: str) -> None:
        if not path.startswith("/"):
            raise ValueError("a request's path begins with a slash")
        try:
            raw_path = quote_path(path)
        except UnicodeEncodeError:
            raise ValueError(
                "a request's path holds a lone surrogate, which UTF-8 cannot write"
            ) from None
        self._path, self._raw_path = path, raw_path

    @property
    def raw_path(self) -> bytes:
        """The path as it came, which is what goes upstream unless `path` is set."""
        return self._raw_path

    @property
    def body(self) -> bytes:
        """The request's body, b"" when there is none.

        Raises `RuntimeError` where no interceptor says `wants_body`, and when the head of the
        response has left.
        """
        return bytes(self._known_body())

    def json(self) -> Any:
        """The body decoded as JSON, anew at each call. Raises `NotJson`, and `RuntimeError` as
        `body` does.
        """
        try:
            return decode_json(self._known_body())
        except (ValueError, RecursionError) as error:
            raise not_json(error, "this request's body") from None

    def replace_body(self, data: bytes | str | None = None, *, json: Any = UNSET) -> None:
        """Send another body instead; of JSON also the Content-Type is set, and a Content-Encoding
        removed. The client's digests of its body (`Content-Digest` and the like) do not go
        upstream.
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
        """The body has been collected, or passes unread (None). For whoever collects it; an
        interceptor calls `replace_body`.
        """
        self._body, self._is_forgotten = body, False

    @property
    def is_preflight(self) -> bool:
        """Whether this is a CORS preflight, with which a browser asks if a page may send a request.
        It has no credentials.

        OPTIONS with one `Origin` and one `Access-Control-Request-Method`, without a body, and
        without a header that makes some servers run another method. Let it pass where you ask for
        credentials or count requests: a browser sends the request itself only after the answer.
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
        """A refusal, as `on_request` returns it: the error has the shape of the route's dialect,
        like the proxy's own.

        `kind` is a word for programs (`quota_exceeded`), `message` is for people. On a route of
        `dialect: mcp` the error is a JSON-RPC response with the request's id: null where the body
        has no request, has several, cannot be read, or has not come when an interceptor refuses
        that does not say `wants_body`.

        Raises `ValueError` for a status that is not an error (400 to 599).
        """
        if not 400 <= status <= 599:
            raise ValueError(
                f"a refusal's status is 400 to 599, not {status}: return a Response for any other answer"
            )
        response = Response(
            status=status,
            headers=headers,
            json=error_json(self.dialect, status, kind, message, self._call_id()),
        )
        if error_format(self.dialect).is_json_rpc and self._body is None:
            response.unaddressed = (status, kind, message)
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
        """Run a task that ends with the exchange: cancelled when that is over, its failure treated
        as a hook's.

        For `on_request`, `on_response` and tasks; the hooks of a stream call `context.start_soon`,
        which knows whose they are.
        """
        start_task(self, TASK_OF.get() or self.asked, async_fn, args)

    @property
    def log(self) -> Any:
        """A structlog logger that names the route."""
        return structlog.get_logger("interceptors").bind(route=self.route)

    def _known_body(self) -> bytes | bytearray | memoryview:
        if self._is_forgotten:
            raise RuntimeError(
                "the body is kept until the head of the response leaves; keep what a stream needs of it"
            )
        if self._body is None:
            raise BodyUnread(
                "this request's body passes unread; an interceptor that needs it says wants_body = True"
            )
        return self._body

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"  # nothing that could be secret


class BodyUnread(Misused, RuntimeError):
    """A body was asked for that passes as it arrives."""


def _headers(given: Mapping[str, str] | Iterable[tuple[bytes, bytes]] | Headers) -> Headers:
    if isinstance(given, httpx.Headers):
        return given
    return httpx.Headers(dict(given) if isinstance(given, Mapping) else list(given))


def start_task(
    request: Request, owner: Any, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
) -> None:
    """Run a task for an owner, in the exchange of a request."""
    if not callable(async_fn):
        if inspect.iscoroutine(async_fn):
            async_fn.close()
        raise Misused(
            f"start_soon takes an async function and its arguments, not {type(async_fn).__name__}: "
            "start_soon(fn, x), and not start_soon(fn(x))"
        )
    if request.spawn is None:
        raise RuntimeError("there is no exchange to run a task in")
    request.spawn(owner, async_fn, args)


def forget_body(request: Request) -> None:
    """Free the body, because the head of the response has left. For the sender of the head."""
    request._body, request._is_forgotten = None, request._body is not None


def address(request: Request, response: Response) -> None:
    """The body has come after a refusal: put the id of the request in it there."""
    if response.unaddressed is not None and request._body:
        response.body = encode_json(
            error_json(request.dialect, *response.unaddressed, request._call_id())
        )


def _check_status(status: int) -> None:
    if not 200 <= status <= 999:
        raise ValueError(f"a response's status is 200 to 999, not {status}")


class ResponseHead:
    """Status and headers of the response. `on_response` may change both; later they show what the
    client gets.
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
        """Setting it raises `ValueError` for a status that cannot end a request."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        _check_status(status)
        self._status = status

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters, in lower case; "" when there is none, or when
        there are several that differ.

        The proxy refuses a response of the second kind before a hook sees it.
        """
        try:
            return media_type(self.headers.raw)
        except Contradiction:
            return ""

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.media_type}>"


class Response:
    """An answer that an interceptor gives instead of the upstream: whole, or as a stream of events.

    `Response(json=...)`, `Response("text")`, `Response(events=...)`. It goes to the client as it
    is; no other interceptor sees it.
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
        """Raises `ValueError` for a status that cannot end a request, and for more than one kind of
        body.
        """
        _check_status(status)
        if (json is not UNSET) + (events is not None) + bool(body) > 1:
            raise ValueError("a response has one of body, json and events")
        self.made_by: Any = None
        """Which interceptor has given it: the chain's own note."""
        self.unaddressed: tuple[int, str, str] | None = None
        """Of a refusal that was made before the body had come: status, kind and message. The
        proxy's own note.
        """
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
