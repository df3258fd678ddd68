"""What an interceptor needs and gives: what cannot work is an error of the check, what is probably
not meant a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interceptors.api_keys import hash_key
from proxy.config import Checked, check_config

KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("k")}"}}, upstream: "Bearer x"}}}}'
LIMIT = "{name: limit, use: rate_limit, options: {requests_per_minute: 60, by: %s}}"
REDACT = "{name: redact, use: redact, options: {patterns: [a]}}"
OWN = """
from interceptors import Interceptor


class Names(Interceptor):
    async def on_request(self, request):
        request.state["client_key"] = "ann"


class Declares(Names):
    sets_state = ("client_key", "tenant")


class Silent(Interceptor):
    pass


class Needs(Interceptor):
    needs_state = ("tenant",)

    def __init__(self, also: list[str] = []) -> None:
        self.needs_state = (*self.needs_state, *also)


class Reads(Declares):
    wants_body = True


class NeedsBody(Needs):
    wants_body = True


class Sets(Interceptor):
    sets_headers = ("X-Tenant",)
"""

Check = Callable[..., Checked]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """`check(names, *entries)`: a route with these interceptors in this order."""
    (tmp_path / "own.py").write_text(OWN)

    def check(
        names: str,
        *entries: str,
        route: str = "dialect: generic",
        upstream: str = "",
        top: str = "",
    ) -> Checked:
        (tmp_path / "weirpool.yaml").write_text(
            f'reverse_proxy:\n  upstreams: [{{name: up, endpoints: ["http://h"], {upstream}}}]\n'
            f"  routes: [{{path: /, upstream: up, interceptors: [{names}], {route}}}]\n"
            f"interceptors: [{', '.join(entries)}]\n{top}"
        )
        return check_config(tmp_path / "weirpool.yaml")

    return check


def own(name: str, options: str = "{}") -> str:
    return f'{{name: {name.lower()}, use: "./own.py:{name}", options: {options}}}'


def lines(checked: Checked) -> list[str]:
    return [f"{problem.severity}: {problem}" for problem in checked.problems]


def test_a_limit_by_client_key_needs_who_sets_it(check: Check) -> None:
    """Before it, and on the same route: otherwise every request would be 502."""
    by_key = LIMIT % "client_key"
    place = "error: reverse_proxy.routes[0].interceptors[0]"
    needs = f'{place}: "limit" needs request.state["client_key"], which nothing before it sets'
    assert lines(check("limit, keys", by_key, KEYS)) == [f'{needs}: list "keys" before "limit"']
    alone = check("limit", by_key)
    assert lines(alone) == [f'{needs}: list an interceptor of api_keys before "limit"']
    assert alone.config is None
    assert lines(check("limit", by_key, KEYS))[0] == f'{needs}: list "keys" before "limit"'
    assert lines(check("keys, limit", by_key, KEYS)) == []
    assert lines(check("limit, keys", LIMIT % "address", KEYS)) == []


def test_a_limit_that_would_count_by_key_and_cannot_is_a_warning(check: Check) -> None:
    """`by: auto` before `api_keys` counts by address, which is probably not meant."""
    checked = check("limit, keys", LIMIT % "auto", KEYS)
    assert lines(checked) == [
        'warning: reverse_proxy.routes[0].interceptors[0]: "limit" uses request.state["client_key"], '
        'which "keys" sets only after it: list "keys" before "limit"'
    ]
    assert checked.config is not None
    assert lines(check("limit", LIMIT % "auto")) == []
    assert lines(check("names, limit, keys", own("Names"), LIMIT % "auto", KEYS)) == []


def test_an_authors_interceptors_declare_what_they_need_and_give(check: Check) -> None:
    """As attributes of the class or of the object."""
    assert lines(check("declares, needs", own("Declares"), own("Needs"))) == []
    (error,) = lines(check("silent, needs", own("Silent"), own("Needs")))
    assert error.startswith(
        'error: reverse_proxy.routes[0].interceptors[1]: "needs" needs request.state["tenant"]'
    )
    assert lines(check("names, needs", own("Names"), own("Needs"))) == [
        'warning: reverse_proxy.routes[0].interceptors[1]: "needs" needs request.state["tenant"], which nothing before it '
        'declares to set: declare sets_state = ("tenant",) on the class that sets it'
    ]
    (error,) = lines(check("declares, needs", own("Declares"), own("Needs", "{also: [more]}")))
    assert 'request.state["more"]' in error
    (error,) = lines(check("reads, needs", own("Reads"), own("Needs")))
    assert error.endswith(
        '"reads" has wants_body and runs after those without: set wants_body on "needs" too'
    )
    assert lines(check("reads, needsbody", own("Reads"), own("NeedsBody"))) == []
    assert (
        lines(check("needsbody, declares", own("Declares"), own("NeedsBody"))) == []
    )  # asked for its head first
    assert lines(check("names, limit", own("Names"), LIMIT % "client_key"))[0].startswith(
        "warning: "
    )


@pytest.mark.parametrize(
    "rule", ["set: {authorization: x}", "set: {Authorization: x}", "remove: [AUTHORIZATION]"]
)
def test_a_replaced_credential_is_an_error(check: Check, rule: str) -> None:
    """The rule has the last word, so that `api_keys.upstream` would have no effect."""
    (error,) = lines(check("keys", KEYS, upstream=f"headers: {{{rule}}}"))
    what = rule.partition(":")[0] if "remove" in rule else f"set.{rule[6:19]}"
    assert error == (
        f'error: reverse_proxy.routes[0].interceptors[0]: "keys" sets authorization, which headers.{what} of the upstream'
        ' "up" overrides: remove one of the two'
    )
    assert lines(check("keys", KEYS, upstream="headers: {set: {x-api-key: x}}")) == []
    assert (
        "X-Tenant" in lines(check("sets", own("Sets"), upstream="headers: {set: {x-tenant: y}}"))[0]
    )


@pytest.mark.parametrize(
    "entry", [REDACT, REDACT.replace("use: redact", "use: guard"), "{name: redact, use: usage}"]
)
@pytest.mark.parametrize(
    "dialect", ["", "dialect: openai", "dialect: anthropic", "dialect: mcp", "dialect: generic"]
)
def test_what_reads_answers_wants_a_dialect(check: Check, entry: str, dialect: str) -> None:
    """Without one the client's path decides what it sees. A `generic` that is written is meant."""
    found = lines(check("redact", entry, route=dialect))
    expected = (
        "warning: reverse_proxy.routes[0]: without a dialect, the request's path decides what redact can see in the answer: "
        "set dialect to openai, anthropic or mcp, or to generic where no LLM answers"
    )
    assert found == ([] if dialect else [expected])


def test_what_nothing_uses_or_reaches_is_a_warning(check: Check) -> None:
    """An interceptor and an upstream without a route."""
    checked = check(
        "redact, redact",
        REDACT,
        KEYS,
        route="dialect: openai}, {path: /a, upstream: up}, {path: //a/, upstream: up}, {path: /metrics, upstream: up",
        upstream='}, {name: other, endpoints: ["http://o"]',
    )
    assert checked.config is not None
    assert [line.removeprefix("warning: ") for line in lines(checked)] == [
        "reverse_proxy.upstreams[1]: no route uses the upstream 'other'",
        "reverse_proxy.routes[0].interceptors[1]: 'redact' is listed twice and runs twice",
        "reverse_proxy.routes[1].path: the route '//a/' shadows this one: it only gets requests for '/a' itself (got \"/a\")",
        "reverse_proxy.routes[3].path: an admin page shadows this path: "
        'set admin.port or admin.prefix to move the pages (got "/metrics")',
        "interceptors[1]: no route uses the interceptor 'keys'",
    ]
    moved = check("", route="}, {path: /metrics, upstream: up", top="admin: {port: 9000}")
    assert lines(moved) == []


@pytest.mark.parametrize("path", ["/%61", "//a", "/x/../a", "/./a"])
def test_two_spellings_of_one_path_are_one_route(check: Check, path: str) -> None:
    """The second would never get a request."""
    (error,) = lines(
        check("", route=f'}}, {{path: /a, upstream: up}}, {{path: "{path}", upstream: up')
    )
    assert error.startswith("error: reverse_proxy.routes[2].path: another route has the path '/a'")
