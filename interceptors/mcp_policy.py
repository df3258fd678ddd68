"""`mcp_policy`: which parts of an MCP server clients may use and see.

    interceptors:
      - name: policy
        use: mcp_policy
        options:
          tools: {allow: ["search_*", "read_file"], deny: ["*_admin"]}
          resources: {deny: ["file:///etc/*"]}

A request for something not allowed gets a JSON-RPC error and never reaches the server; lists omit
it. Deny overrides allow. Fails closed (`strict`): refuses what it cannot read, and what a server
might read differently.
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
# Methods to recognise in any case: a server may ignore case.
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
    """Globs (`*`, `?`, `[...]`) for names, methods or URIs."""

    allow: list[str] | None = None
    """Only these. None: all."""
    deny: list[str] = []
    """Never these, even if `allow` has them."""


@dataclass(frozen=True, kw_only=True)
class McpPolicyOptions:
    """The options of `McpPolicy`."""

    methods: Rule = field(default_factory=Rule)
    """Methods of the client's requests and notifications. Those of the protocol itself
    (`initialize`, `server/discover`, `ping`, `notifications/*`) need no `allow`.
    """
    tools: Rule = field(default_factory=Rule)
    resources: Rule = field(default_factory=Rule)
    """URIs and URI templates."""
    prompts: Rule = field(default_factory=Rule)


class McpPolicy(McpInterceptor):
    """Refuses what is not allowed, and removes it from lists.

    Raises `ValueError` for options without effect.
    """

    on_error: OnError = "abort"  # fail closed
    strict = True
    sets_state = ()

    def __init__(self, options: McpPolicyOptions) -> None:
        rules = {
            name: getattr(options, name) for name in ("methods", "tools", "resources", "prompts")
        }
        if all(rule.allow is None and not rule.deny for rule in rules.values()):
            raise ValueError("no rule is set, so everything would be allowed")
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
        """Set the Content-Type to the one that clients read the body as.

        Official clients search the header for their media types (`application/json-rpc`, a second
        header). Raises `Abort` if they could read the body in two ways.
        """
        value = ", ".join(head.headers.get_list("content-type")).lower()
        read_as = [kind for kind in ("application/json", "text/event-stream") if kind in value]
        if len(read_as) > 1:
            raise Abort("the response has two content types")
        if read_as and head.media_type != read_as[0]:
            head.headers["content-type"] = read_as[0]
        return await super().on_response(head)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        """Filter by the shape of a message, not by its request: a client can reuse an id."""
        stream = super().open_stream(context)
        return _ShownStream(self._lists, stream) if self._lists else stream

    @on_mcp_request()
    def check_request(self, message: McpMessage) -> McpError | None:
        """Refuse a client's request that is not allowed. The server's requests pass."""
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
        """Drop a client's notification that is not allowed."""
        if message.from_client and not self._allows_method(message.method or ""):
            message.drop()

    def _allows_method(self, method: str) -> bool:
        folded = fold(trim(method))
        return _FOLDED.get(folded, method) == method and self._methods.allows(method)

    def _check_listen(self, message: McpMessage) -> McpError | None:
        """Check the resource URIs of `subscriptions/listen` (revision 2026-07-28)."""
        asked = message.params.get("notifications")
        uris = asked.get("resourceSubscriptions") if isinstance(asked, dict) else None
        if uris is None or (
            isinstance(uris, list) and all(self._resources.allows(uri) for uri in uris)
        ):
            return None
        return _no_resource(message)

    def _check_completion(self, message: McpMessage) -> McpError | None:
        """Check the prompt or resource template that a completion refers to."""
        ref = message.params.get("ref")
        kind = ref.get("type") if isinstance(ref, dict) else None
        if kind == "ref/prompt":
            return None if self._prompts.allows(message.name) else _refused("prompt")
        if kind == "ref/resource":
            return None if self._resources.allows(message.name) else _no_resource(message)
        return McpError(INVALID_PARAMS, "a completion must refer to a prompt or a resource")


class _ShownStream(StreamInterceptor):
    """Removes hidden list entries from the server's messages, before the MCP hooks see them."""

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
    """A compiled rule. Deny ignores case; allow does not."""

    def __init__(self, rule: Rule, always: tuple[str, ...] = ()) -> None:
        self._allow = (
            None
            if rule.allow is None
            else [re.compile(translate(glob)).match for glob in (*rule.allow, *always)]
        )
        self._deny = [re.compile(translate(fold(glob))).match for glob in rule.deny]
        self.is_open = self._allow is None and not self._deny
        """The rule allows everything."""

    def allows(self, name: object) -> bool:
        """A name is allowed. Anything but a string is not."""
        return self.is_open or (isinstance(name, str) and self._allows(name))

    def _allows(self, name: str) -> bool:
        return self._permits(name) and not self._denies(name)

    def _permits(self, name: str) -> bool:
        return self._allow is None or any(match(name) for match in self._allow)

    def _denies(self, name: str) -> bool:
        written = {fold(name), fold(trim(name))}
        return any(match(text) for match in self._deny for text in written)


class _UriMatcher(_Matcher):
    """A rule for URIs: one denied spelling, also without query and fragment, denies; all must be
    allowed.
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
    """The error that servers send for an unknown name."""
    return McpError(code, f"this {what} is not allowed here")


def _no_resource(message: McpMessage) -> McpError:
    return _refused(
        "resource", INVALID_PARAMS if has_mirrors(message.revision) else RESOURCE_NOT_FOUND
    )
