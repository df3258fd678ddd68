"""The interceptors of a configuration: loading them, and checking that those of a route fit
together.

Interceptors declare what they need and provide: `sets_state`, `needs_state`, `uses_state`,
`sets_headers`, `wants_dialect`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from interceptors import Interceptor, LoadError
from interceptors.dialects.answers import is_decided_by_path
from interceptors.hooks import Owner
from interceptors.loader import load_interceptor
from interceptors.values import Mistake

from ..errors import ConfigError, Problem
from .schema import Config, Route, Upstream

__all__ = ["load_all", "load_interceptors", "wiring_mistakes", "wiring_warnings"]


def load_interceptors(config: Config) -> dict[str, Owner]:
    """Load every configured interceptor. Raises `ConfigError` with every failure."""
    loaded, mistakes = load_all(config)
    if mistakes:
        raise ConfigError(*[Problem(item.path, item.message, item.hint) for item in mistakes])
    return {name: Owner(name, interceptor) for name, interceptor in loaded.items()}


def load_all(
    config: Config, bad: Collection[str] = ()
) -> tuple[dict[str, Interceptor], list[Mistake]]:
    """Return the interceptors that could be made, by name, and the mistakes. `bad`: paths to leave
    out.

    An interceptor with wrong options may be made from its valid ones, to find more mistakes.
    """
    loaded: dict[str, Interceptor] = {}
    mistakes: list[Mistake] = []
    for index, entry in enumerate(config.interceptors):
        path = f"interceptors[{index}]"
        if {"interceptors", path, f"{path}.use"} & set(bad):
            continue
        try:
            loaded[entry.name] = load_interceptor(entry.use, entry.options)
        except LoadError as error:
            if error.made is not None:
                loaded[entry.name] = error.made
            for item in error.errors:
                where = f"{path}.options.{item.option}" if item.option else f"{path}.use"
                if not any(
                    wrong.startswith(where) for wrong in bad
                ):  # an unset variable in it is reported already
                    mistakes.append(Mistake(where, item.problem, item.hint, shows_value=False))
    return loaded, mistakes


def wiring_mistakes(config: Config, loaded: Mapping[str, Interceptor]) -> Iterator[Mistake]:
    """Yield errors: every request of a route would fail, or an option would have no effect."""
    upstreams = {upstream.name: upstream for upstream in config.reverse_proxy.upstreams}
    for index, route in enumerate(config.reverse_proxy.routes):
        chain = _chain_of(route, loaded)
        upstream = upstreams.get(route.upstream)
        for number, interceptor in chain:
            if interceptor is None:
                continue
            path = f"reverse_proxy.routes[{index}].interceptors[{number}]"
            name = route.interceptors[number]
            for key in interceptor.needs_state:
                if not _may_set(chain, number, key, undeclared=True):
                    later = _setter_after(route, chain, number, key)
                    hint = _before(route, later, number) if later else _who_sets(key, loaded, name)
                    needs = f'"{name}" needs request.state["{key}"], which nothing before it sets'
                    yield Mistake(path, needs, hint, shows_value=False)
            for header in interceptor.sets_headers if upstream is not None else ():
                assert upstream is not None
                what = _rule_for(upstream, header)
                if what is not None:
                    yield Mistake(
                        path,
                        f'"{name}" sets {header}, which headers.{what} of the upstream'
                        f' "{upstream.name}" overrides',
                        "remove one of the two",
                        shows_value=False,
                    )


def wiring_warnings(
    config: Config, loaded: Mapping[str, Interceptor], given: Collection[str]
) -> Iterator[Mistake]:
    """Yield what is valid but probably not intended. `given`: paths that the file contains."""
    for index, route in enumerate(config.reverse_proxy.routes):
        chain = _chain_of(route, loaded)
        for number, interceptor in chain:
            if interceptor is None:
                continue
            path = f"reverse_proxy.routes[{index}].interceptors[{number}]"
            name = route.interceptors[number]
            for key in interceptor.needs_state:
                if not _may_set(chain, number, key, undeclared=False) and _may_set(
                    chain, number, key, undeclared=True
                ):
                    yield Mistake(
                        path,
                        f'"{name}" needs request.state["{key}"],'
                        " which nothing before it declares to set",
                        f'declare sets_state = ("{key}",) on the class that sets it',
                        shows_value=False,
                    )
            for key in interceptor.uses_state:
                later = _setter_after(route, chain, number, key)
                if later and not _may_set(chain, number, key, undeclared=True):
                    yield Mistake(
                        path,
                        f'"{name}" uses request.state["{key}"], which "{later}" sets only after it',
                        _before(route, later, number),
                        shows_value=False,
                    )
        unsure = [
            route.interceptors[number]
            for number, interceptor in chain
            if interceptor is not None and interceptor.wants_dialect
        ]
        if (
            unsure
            and is_decided_by_path(route.dialect)
            and f"reverse_proxy.routes[{index}].dialect" not in given
        ):
            yield Mistake(
                f"reverse_proxy.routes[{index}]",
                f"without a dialect, the request's path decides what {', '.join(unsure)} can see"
                " in the answer",
                "set dialect to openai, anthropic or mcp, or to generic where no LLM answers",
                shows_value=False,
            )


_Chain = Sequence[tuple[int, Interceptor | None]]
"""A route's interceptors in the order in which they run, with their index in its list; None for a
wrong one.
"""


def _chain_of(route: Route, loaded: Mapping[str, Interceptor]) -> _Chain:
    listed = [(number, loaded.get(name)) for number, name in enumerate(route.interceptors)]
    return sorted(
        listed, key=lambda item: item[1] is not None and item[1].wants_body
    )  # interceptors that only need the head run first


def _may_set(chain: _Chain, before: int, key: str, *, undeclared: bool) -> bool:
    """Whether an interceptor before an index sets a key. `undeclared`: also count one without
    `sets_state`.
    """
    for number, interceptor in chain:
        if number == before:
            return False
        if interceptor is None:
            return True
        declared = interceptor.sets_state
        if (
            declared is None
            and undeclared
            and type(interceptor).on_request is not Interceptor.on_request
        ):
            return True
        if declared is not None and key in declared:
            return True
    return False


def _setter_after(route: Route, chain: _Chain, place: int, key: str) -> str | None:
    asked = [number for number, _ in chain]
    for number, interceptor in chain[asked.index(place) + 1 :]:
        if interceptor is not None and key in (interceptor.sets_state or ()):
            return route.interceptors[number]
    return None


def _before(route: Route, later: str, place: int) -> str:
    """Return a hint that makes the later interceptor run before the one at `place`."""
    name = route.interceptors[place]
    if later in route.interceptors[:place]:
        return (
            f'"{later}" has wants_body and runs after those without: set wants_body on "{name}" too'
        )
    return f'list "{later}" before "{name}"'


def _who_sets(key: str, loaded: Mapping[str, Interceptor], name: str) -> str:
    setters = [
        f'"{other}"'
        for other, interceptor in loaded.items()
        if key in (interceptor.sets_state or ())
    ]
    if setters:
        return f'list {" or ".join(setters)} before "{name}"'
    return f'list an interceptor of api_keys before "{name}"' if key == "client_key" else ""


def _rule_for(upstream: Upstream, header: str) -> str | None:
    """Return the header rule of an upstream that replaces or removes a header."""
    for name in upstream.headers.set:
        if name.lower() == header.lower():
            return f"set.{name}"
    return (
        "remove" if header.lower() in [name.lower() for name in upstream.headers.remove] else None
    )
