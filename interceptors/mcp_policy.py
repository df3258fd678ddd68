"""`mcp_policy`: which methods, tools, resources and prompts of an MCP server clients may use, and
see.

    interceptors:
      - name: policy
        use: mcp_policy
        options:
          tools: {allow: ["search_*", "read_file"], deny: ["*_admin"]}
          resources: {deny: ["file:///etc/*"]}

A request for what is not allowed is answered with a JSON-RPC error and never reaches the server;
lists show what is left. Deny wins over allow. It fails closed: what it cannot read, or what a
server might understand differently, is refused (`strict`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import translate

import msgspec

from .api import EventResult, OnError, Outcome, StreamContext, StreamInterceptor
from .dialects.mcp import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND, McpError, McpMessage
from .dialects.mcp_headers import has_mirrors
from .dialects.mcp_hooks import McpInterceptor, on_mcp_notification, on_mcp_request
from .errors import Abort, NotJson, refuse_options
from .event import BodyEvent, Event
from .mcp_lists import VisibleLists
from .message import Response, ResponseHead
from .toolkit.uris import fold, spellings, trim

__all__ = ["McpPolicy", "McpPolicyOptions", "Rule"]

_ALWAYS = ("initialize", "server/discover", "ping", "notifications/*")
# Methods that this must recognise: a server that does not mind their case must not be asked for
# them in another one.
_KNOWN = (
    "initialize",
    "server/discover",
    "ping",
    "logging/setLevel",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "subscriptions/listen",
    "prompts/list",
    "prompts/get",
    "completion/complete",
)
_FOLDED = {fold(method): method for method in _KNOWN}


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be used: globs (`*`, `?`, `[...]`) of names, methods or URIs."""

    allow: list[str] | None = None
    """Those, and no others. None: all."""
    deny: list[str] = []
    """Not those, also where `allow` has them."""


@dataclass(frozen=True, kw_only=True)
class McpPolicyOptions:
    """The options of `McpPolicy`."""

    methods: Rule = field(default_factory=Rule)
    """The methods of the client's requests and notifications. The protocol's own (`initialize`, `server/discover`, `ping`,
    `notifications/*`) need no `allow`."""
    tools: Rule = field(default_factory=Rule)
    resources: Rule = field(default_factory=Rule)
    """URIs, and the URI templates of resources."""
    prompts: Rule = field(default_factory=Rule)


class McpPolicy(McpInterceptor):
    """Refuses what is not allowed, and takes it out of lists. Raises `ValueError` for options that
    would do nothing.
    """

    on_error: OnError = "abort"  # fail closed: what could not be checked goes nowhere
    strict = True
    sets_state = ()

    def __init__(self, options: McpPolicyOptions) -> None:
        rules = {
            name: getattr(options, name) for name in ("methods", "tools", "resources", "prompts")
        }
        if all(rule.allow is None and not rule.deny for rule in rules.values()):
            raise ValueError("there is no rule, so everything would be allowed")
        refuse_options(
            [
                f"{name}.{part}[{index}]: the glob is empty and would match nothing"
                for name, rule in rules.items()
                for part, globs in (("allow", rule.allow or []), ("deny", rule.deny))
                for index, glob in enumerate(globs)
                if not glob
            ]
        )
        self._methods = _Matcher(rules["methods"], always=_ALWAYS)
        self._tools = _Matcher(rules["tools"])
        self._prompts = _Matcher(rules["prompts"])
        self._resources = _UriMatcher(rules["resources"])
        matchers = {
            "tools": self._tools,
            "prompts": self._prompts,
            "resources": self._resources,
            "resourceTemplates": self._resources,
        }
        self._lists = VisibleLists(
            {name: matcher.allows for name, matcher in matchers.items() if not matcher.is_open}
        )

    async def on_response(self, head: ResponseHead) -> Response | None:
        """Official clients find their media types anywhere in Content-Type (`application/json-rpc`,
        a second header): so the body gets the type that they read it as. Raises `Abort` where they
        would read it in two ways.
        """
        value = ", ".join(head.headers.get_list("content-type")).lower()
        read_as = [kind for kind in ("application/json", "text/event-stream") if kind in value]
        if len(read_as) > 1:
            raise Abort("the response has two content types")
        if read_as and head.media_type != read_as[0]:
            head.headers["content-type"] = read_as[0]
        return await super().on_response(head)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        """What the server sends is filtered by its shape: a client that uses an id twice could make
        us believe anything.
        """
        stream = super().open_stream(context)
        return _ShownStream(self._lists, stream) if self._lists else stream

    @on_mcp_request()
    def check_request(self, message: McpMessage) -> McpError | None:
        """The error for what the client may not ask for. What the server asks for is not this one's
        business.
        """
        if not message.from_client:
            return None
        method = message.method or ""
        if not self._allows_method(method):
            return McpError(METHOD_NOT_FOUND, "this method is not allowed here")
        if method == "tools/call":
            return None if self._tools.allows(message.name) else _refused("tool")
        if method == "prompts/get":
            return None if self._prompts.allows(message.name) else _refused("prompt")
        if method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            return None if self._resources.allows(message.name) else _no_resource(message)
        if method == "subscriptions/listen":
            return self._check_listen(message)
        if method == "completion/complete":
            return self._check_completion(message)
        return None

    @on_mcp_notification()
    def check_notification(self, message: McpMessage) -> None:
        """One of the client's that is not allowed goes no further."""
        if message.from_client and not self._allows_method(message.method or ""):
            message.drop()

    def _allows_method(self, method: str) -> bool:
        folded = fold(trim(method))
        return _FOLDED.get(folded, method) == method and self._methods.allows(method)

    def _check_listen(self, message: McpMessage) -> McpError | None:
        """2026-07-28, `subscriptions/listen`: the URIs of the resources that the client wants to
        hear of.
        """
        asked = message.params.get("notifications")
        uris = asked.get("resourceSubscriptions") if isinstance(asked, dict) else None
        if uris is None or (
            isinstance(uris, list) and all(self._resources.allows(uri) for uri in uris)
        ):
            return None
        return _no_resource(message)

    def _check_completion(self, message: McpMessage) -> McpError | None:
        """A completion tells of the prompt or the resource's template that it refers to."""
        ref = message.params.get("ref")
        kind = ref.get("type") if isinstance(ref, dict) else None
        if kind == "ref/prompt":
            return None if self._prompts.allows(message.name) else _refused("prompt")
        if kind == "ref/resource":
            return None if self._resources.allows(message.name) else _no_resource(message)
        return McpError(INVALID_PARAMS, "a completion refers to a prompt or a resource")


class _ShownStream(StreamInterceptor):
    """The server's messages without what the client may not see, then as any interceptor for MCP
    sees them.
    """

    def __init__(self, lists: VisibleLists, stream: StreamInterceptor) -> None:
        self._lists = lists
        self._stream = stream

    def on_start(self, head: ResponseHead) -> None:
        self._stream.on_start(head)

    def on_event(self, event: Event) -> EventResult:
        data = event.data
        try:
            shown = self._lists.show(data)
        except NotJson as error:
            raise Abort(str(error)) from None
        if shown is data:
            return self._stream.on_event(event)
        if event.is_body:
            return self._stream.on_event(BodyEvent((shown or "").encode()))
        return None if shown is None else self._stream.on_event(event.replace(shown))

    def on_complete(self) -> Event | Sequence[Event] | None:
        return self._stream.on_complete()

    def on_end(self, outcome: Outcome) -> None:
        self._stream.on_end(outcome)


class _Matcher:
    """A rule, compiled. What it denies it denies in any case of letters; what it allows it allows
    as it is written.
    """

    def __init__(self, rule: Rule, always: tuple[str, ...] = ()) -> None:
        self._allow = (
            None
            if rule.allow is None
            else [re.compile(translate(glob)).match for glob in (*rule.allow, *always)]
        )
        self._deny = [re.compile(translate(fold(glob))).match for glob in rule.deny]
        self.is_open = self._allow is None and not self._deny
        """There is no rule: it allows everything."""

    def allows(self, name: object) -> bool:
        """What has no name that is text is as good as not there."""
        return self.is_open or (isinstance(name, str) and self._allows(name))

    def _allows(self, name: str) -> bool:
        return self._permits(name) and not self._denies(name)

    def _permits(self, name: str) -> bool:
        return self._allow is None or any(match(name) for match in self._allow)

    def _denies(self, name: str) -> bool:
        written = {fold(name), fold(trim(name))}
        return any(match(text) for match in self._deny for text in written)


class _UriMatcher(_Matcher):
    """Of URIs: denied if that is so in any spelling, also without its query and fragment; allowed
    if that is so in all.
    """

    def _allows(self, name: str) -> bool:
        try:
            found = spellings(name)
        except ValueError:
            return False
        denied = dict.fromkeys((*found.same, *found.careless))
        denied |= dict.fromkeys([re.split(r"[?#]", spelling, maxsplit=1)[0] for spelling in denied])
        return all(map(self._permits, found.same)) and not any(map(self._denies, denied))


def _refused(what: str, code: int = INVALID_PARAMS) -> McpError:
    """The code for what is not there: that is how servers say it of a name that they do not know."""
    return McpError(code, f"this {what} is not allowed here")


def _no_resource(message: McpMessage) -> McpError:
    return _refused(
        "resource", INVALID_PARAMS if has_mirrors(message.revision) else RESOURCE_NOT_FOUND
    )
