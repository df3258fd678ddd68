"""`mcp_policy`: which methods, tools, resources and prompts of an MCP server clients may use, and see.

    interceptors:
      - name: policy
        use: mcp_policy
        options:
          tools: {allow: ["search_*", "read_file"], deny: ["*_admin"]}
          resources: {deny: ["file:///etc/*"]}

A request for what is not allowed is answered with a JSON-RPC error and never reaches the server; lists show what is left. Deny
wins over allow. It fails closed: what it cannot read, or what a server might understand differently, is refused (`strict`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any

import msgspec

from .api import OnError
from .dialects.mcp import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND, McpError, McpMessage
from .dialects.mcp_headers import has_mirrors
from .dialects.mcp_hooks import McpInterceptor, on_mcp_notification, on_mcp_request, on_mcp_response
from .uris import spellings

__all__ = ["McpPolicy", "McpPolicyOptions", "Rule"]

_ALWAYS = ("initialize", "server/discover", "ping", "notifications/*")
# Methods that this must recognise: a server that does not mind their case must not be asked for them in another one.
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
_FOLDED = {method.casefold(): method for method in _KNOWN}


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
    """Refuses what is not allowed, and takes it out of lists. Raises `ValueError` for options that would do nothing."""

    on_error: OnError = "abort"  # fail closed: what could not be checked goes nowhere
    strict = True

    def __init__(self, options: McpPolicyOptions) -> None:
        rules = {name: getattr(options, name) for name in ("methods", "tools", "resources", "prompts")}
        if all(rule.allow is None and not rule.deny for rule in rules.values()):
            raise ValueError("there is no rule, so everything would be allowed")
        for name, rule in rules.items():
            for part, globs in (("allow", rule.allow or []), ("deny", rule.deny)):
                if "" in globs:
                    raise ValueError(f"{name}.{part}[{globs.index('')}]: the glob is empty and would match nothing")
        self._methods = _Matcher(rules["methods"], always=_ALWAYS)
        self._tools = _Matcher(rules["tools"])
        self._prompts = _Matcher(rules["prompts"])
        self._resources = _Matcher(rules["resources"])
        # The members of a result that are lists to be filtered: what names an entry, and whether it is shown.
        self._lists: dict[str, tuple[str, Callable[[str], bool]]] = {}
        if not self._tools.is_open:
            self._lists["tools"] = "name", self._tools.allows
        if not self._prompts.is_open:
            self._lists["prompts"] = "name", self._prompts.allows
        if not self._resources.is_open:
            self._lists |= {"resources": ("uri", self._allows_uri), "resourceTemplates": ("uriTemplate", self._allows_uri)}

    @on_mcp_request()
    def check_request(self, message: McpMessage) -> McpError | None:
        """The error for what the client may not ask for. What the server asks for is not this one's business."""
        if not message.from_client:
            return None
        method, params = message.method or "", message.params
        if not self._allows_method(method):
            return McpError(METHOD_NOT_FOUND, "this method is not allowed here")
        if method == "tools/call":
            return None if self._allows(self._tools.allows, message.name) else _refused("tool")
        if method == "prompts/get":
            return None if self._allows(self._prompts.allows, message.name) else _refused("prompt")
        if method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            return None if self._allows(self._allows_uri, message.name) else self._no_resource(message)
        if method == "subscriptions/listen":
            return self._check_listen(message, params)
        if method == "completion/complete":
            return self._check_completion(message, params)
        return None

    @on_mcp_notification()
    def check_notification(self, message: McpMessage) -> None:
        """One that is not allowed goes no further, in either direction: the server's name resources."""
        if message.from_client:
            if not self._allows_method(message.method or ""):
                message.drop()
        elif message.method == "notifications/resources/updated" and not self._allows(self._allows_uri, message.name):
            message.drop()

    @on_mcp_response()
    def show_allowed(self, message: McpMessage) -> None:
        """Lists are told by their shape, whatever they answer: a client that uses an id twice could make us believe anything."""
        result = message.result if not message.from_client else None
        if not isinstance(result, dict):
            return
        for member, (key, allows) in self._lists.items():
            entries = result.get(member)
            if isinstance(entries, list):
                result[member] = [
                    entry for entry in entries if isinstance(entry, dict) and self._allows(allows, entry.get(key))
                ]

    def _allows_method(self, method: str) -> bool:
        folded = method.strip().casefold()
        return _FOLDED.get(folded, method) == method and self._methods.allows(method)

    def _allows(self, allows: Callable[[str], bool], name: object) -> bool:
        """What has no name that is text is as good as not there."""
        return isinstance(name, str) and allows(name)

    def _allows_uri(self, uri: str) -> bool:
        """Denied if it is so in any spelling, also without its query and fragment; allowed if it is so in all."""
        if self._resources.is_open:
            return True
        try:
            found = spellings(uri)
        except ValueError:
            return False
        shorter = [re.split(r"[?#]", spelling, maxsplit=1)[0] for spelling in found]
        return self._resources.permits(found) and not any(map(self._resources.denies, (*found, *shorter)))

    def _check_listen(self, message: McpMessage, params: dict[str, Any]) -> McpError | None:
        """2026-07-28, `subscriptions/listen`: the URIs of the resources that the client wants to hear of."""
        asked = params.get("notifications")
        uris = asked.get("resourceSubscriptions") if isinstance(asked, dict) else None
        if uris is None or (isinstance(uris, list) and all(self._allows(self._allows_uri, uri) for uri in uris)):
            return None
        return self._no_resource(message)

    def _check_completion(self, message: McpMessage, params: dict[str, Any]) -> McpError | None:
        """A completion tells of the prompt or the resource's template that it refers to."""
        ref = params.get("ref")
        kind = ref.get("type") if isinstance(ref, dict) else None
        if kind == "ref/prompt":
            return None if self._allows(self._prompts.allows, message.name) else _refused("prompt")
        if kind == "ref/resource":
            return None if self._allows(self._allows_uri, message.name) else self._no_resource(message)
        return McpError(INVALID_PARAMS, "a completion refers to a prompt or a resource")

    def _no_resource(self, message: McpMessage) -> McpError:
        return _refused("resource", INVALID_PARAMS if has_mirrors(message.revision) else RESOURCE_NOT_FOUND)


class _Matcher:
    """A rule, compiled. What it denies it denies in any case of letters; what it allows it allows as it is written."""

    def __init__(self, rule: Rule, always: tuple[str, ...] = ()) -> None:
        self._allow = None if rule.allow is None else [re.compile(translate(glob)).match for glob in (*rule.allow, *always)]
        self._deny = [re.compile(translate(glob.casefold())).match for glob in rule.deny]
        self.is_open = self._allow is None and not self._deny
        """It allows everything."""

    def allows(self, name: str) -> bool:
        return self.permits((name,)) and not self.denies(name)

    def permits(self, names: tuple[str, ...]) -> bool:
        """Whether `allow` has all of them."""
        return self._allow is None or all(any(match(name) for match in self._allow) for name in names)

    def denies(self, name: str) -> bool:
        return any(match(name.strip().casefold()) or match(name.casefold()) for match in self._deny)


def _refused(what: str, code: int = INVALID_PARAMS) -> McpError:
    """The code for what is not there: that is how servers say it of a name that they do not know."""
    return McpError(code, f"this {what} is not allowed here")
