"""The configuration: what valid ones mean, and every error of wrong ones (`mistakes.txt`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import certifi
import pytest

from proxy.config import (
    Config,
    Limits,
    Timeouts,
    check_config,
    load_config,
    parse_config,
    single_upstream,
)
from proxy.errors import ConfigError

UPSTREAM = '{name: llm, endpoints: ["http://h"]}'
ROUTE = "{path: /, upstream: llm}"


def configuration(
    *, upstreams: str = UPSTREAM, routes: str = ROUTE, proxy: str = "", top: str = ""
) -> str:
    """A small valid configuration with parts replaced and lines added."""
    return f"reverse_proxy:\n  upstreams: [{upstreams}]\n  routes: [{routes}]\n  {proxy}\n{top}\n"


def upstream(rest: str) -> str:
    return configuration(upstreams=f'{{name: llm, endpoints: ["http://h"], {rest}}}')


def route(rest: str) -> str:
    return configuration(routes=f"{{path: /, upstream: llm, {rest}}}")


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return list(caught.value.errors)


def cases() -> Iterator[tuple[str, list[str]]]:
    """Each configuration of `mistakes.txt` with its errors."""
    parts: dict[str, str] = {}
    found: list[str] = []
    for line in [*(Path(__file__).parent / "mistakes.txt").read_text().splitlines(), ""]:
        if line.startswith("    "):
            found.append(line[4:].replace("⏎", "\n"))
            continue
        if found:
            yield text_of(parts), found
            parts, found = {}, []
        if line.startswith("["):
            part, _, value = line[1:].partition("] ")
            parts[part.rstrip("]")] = value.replace("⏎", "\n")


def text_of(parts: dict[str, str]) -> str:
    match parts:
        case {"text": text}:
            return text
        case {"upstream": rest}:
            return upstream(rest)
        case {"route": rest}:
            return route(rest)
    return configuration(**parts)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "SET": "set",
        "EMPTY": "",
        "NESTED": "${SET}",
        "NUMBER": "7",
        "FRACTION": "2.5",
        "TRUE": "true",
        "SECRET": "s3cr3t-of-mine",
        "SHORT": "ab",
        "LLM_API_KEY": "k:1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


# Valid configurations


def test_the_defaults_and_the_overrides_of_a_route() -> None:
    """A route overrides what it names, key by key."""
    config = parse_config(
        configuration(
            routes="{path: /a, upstream: llm, timeouts: {idle: null, connect: 2.5},"
            " limits: {max_streams: 7}, heartbeat: {interval: null}, retry: {max_attempts: 1},"
            " reconnect: {enabled: true, max_attempts: 2}}, {path: /b, upstream: llm}",
            proxy="timeouts: {connect: 1, send: 3}\n  limits: {max_event_bytes: 2048}\n"
            "  heartbeat: {interval: 15, early: true}\n  reconnect: {max_backoff: 9}\n"
            "  retry: {budget: 0}",
        )
    )
    a, b = config.reverse_proxy.routes
    assert config.timeouts_of(a) == Timeouts(connect=2.5, send=3, idle=None)
    assert config.timeouts_of(b) == Timeouts(connect=1, send=3)
    assert config.limits_of(a) == Limits(max_event_bytes=2048, max_streams=7)
    assert config.limits_of(b) == Limits(max_event_bytes=2048)
    common, own = config.heartbeat_of(b), config.heartbeat_of(a)
    assert (own.interval, own.early, common.interval) == (None, True, 15)
    again, off = config.reconnect_of(a), config.reconnect_of(b)
    assert (again.enabled, again.max_attempts, again.max_backoff) == (True, 2, 9)
    assert (off.enabled, off.max_attempts) == (False, 5)
    assert (config.retry_of(a).max_attempts, config.retry_of(b).max_attempts) == (1, 2)
    assert config.retry_of(a).budget == 0


def test_settings_that_depend_on_each_other_may_be_equal() -> None:
    parse_config(configuration(proxy="health: {eject: 7, max_eject: 7}"))
    parse_config(configuration(proxy="reconnect: {initial_backoff: 7, max_backoff: 7}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${SET:-other}", "set"),
        ("${UNSET:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-}x", "x"),
        ("${UNSET:-a b:-c}", "a b:-c"),
        ("${UNSET:-${SET}}", "set"),
        ("${UNSET:-${EMPTY:-${SET}}-${SET}}!", "set-set!"),
        ("${SET:-${UNSET}}", "set"),
        ("${SET:-${file:/no/such/file}}", "set"),
        ("${UNSET:-$${SET}", "${SET"),
        ("$$${SET}", "$${SET}"),
        ("$${", "${"),
        ("${SET}}", "set}"),
        ("$SET {SET} $", "$SET {SET} $"),
        ("x${EMPTY}${SET}", "xset"),
        ("${NESTED}", "${SET}"),
        ("$SET $${SET} }", "$SET ${SET} }"),
    ],
)
def test_references_are_replaced(text: str, value: str) -> None:
    """`:-` as in POSIX, 2.6.2: a default may hold references, which are looked up only when it is
    used; `$${` is a literal `${`. A value is not searched for references.
    """
    config = parse_config(
        configuration(
            upstreams='{name: llm, endpoints: ["http://${SET}:80${EMPTY}"],'
            f" headers: {{set: {{a: {json.dumps(text)}}}}}}}"
        )
    )
    (one,) = config.reverse_proxy.upstreams
    assert (one.endpoints, one.headers.set["a"]) == (["http://set:80"], value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("limits: {max_streams: '${NUMBER}'}", "limits.max_streams", 7),
        (
            "limits: {max_streams_per_client: '${UNSET:-null}'}",
            "limits.max_streams_per_client",
            None,
        ),
        ("timeouts: {idle: '${FRACTION}', connect: '${NUMBER}'}", "timeouts.idle", 2.5),
        ("timeouts: {idle: '${UNSET:-null}'}", "timeouts.idle", None),
        ("heartbeat: {early: '${TRUE}', interval: 1}", "heartbeat.early", True),
    ],
)
def test_a_reference_can_be_a_number(text: str, path: str, value: object) -> None:
    found = attrgetter(path)(parse_config(configuration(proxy=text)).reverse_proxy)
    assert (found, type(found)) == (value, type(value))


def test_a_file_is_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${file:PATH}`: relative to the configuration, without one line end at its end, read again
    each time; the path may hold references.
    """
    file, secrets = tmp_path / "weirpool.yaml", tmp_path / "secrets"
    secrets.mkdir()
    for name, data in {"key": b"k1\n", "two": b"k2\n\n", "crlf": b"k3\r\n", "bare": b"k4"}.items():
        (secrets / name).write_bytes(data)
    monkeypatch.setenv("CREDENTIALS", str(secrets))
    monkeypatch.chdir("/")
    values = '{a: "Bearer ${file:secrets/key}", b: "${file:${CREDENTIALS}/crlf}", c: "${file:secrets/bare}"}'
    file.write_text(upstream(f"headers: {{set: {values}}}"))
    assert load_config(file).reverse_proxy.upstreams[0].headers.set == {
        "a": "Bearer k1",
        "b": "k3",
        "c": "k4",
    }
    (secrets / "key").write_text("new")
    assert load_config(str(file)).reverse_proxy.upstreams[0].headers.set["a"] == "Bearer new"
    file.write_text(upstream('headers: {set: {a: "${file:secrets/two}"}}'))
    with pytest.raises(ConfigError, match=r"set\.a: the value has characters that a header cannot"):
        load_config(file)


def test_anchors_and_merges_are_read() -> None:
    """A key that a merge brings as well is not a duplicate."""
    config = parse_config(
        configuration(
            upstreams='&one {name: llm, endpoints: ["http://h"], max_connections: 5}, {<<: *one, name: other}'
        )
    )
    assert [(item.name, item.max_connections) for item in config.reverse_proxy.upstreams] == [
        ("llm", 5),
        ("other", 5),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "https://h:8443",
        "http://127.0.0.1:1/",
        "http://[::1]:80/a/b",
        "https://h/a%20b",
        "HTTP://h/~x",
        "http://my_host",
    ],
)
def test_an_endpoint_is_a_scheme_a_host_a_port_and_a_path(url: str) -> None:
    assert parse_config(
        configuration(upstreams=f'{{name: llm, endpoints: ["{url}"]}}')
    ).reverse_proxy.upstreams[0].endpoints == [url]
    config = single_upstream(url)
    assert isinstance(config, Config)
    assert config.reverse_proxy.upstreams[0].endpoints == [url]
    assert [(item.path, item.upstream) for item in config.reverse_proxy.routes] == [
        ("/", config.reverse_proxy.upstreams[0].name)
    ]


@pytest.mark.parametrize(
    "origin",
    ["null", "https://A.example", "http://localhost:3000", "http://[::1]:3000", "https://1.2.3.4", "chrome-extension://abc",
     "file://", "https://a:80", "app://.", "https://xn--4ca.example"],
)  # fmt: skip
def test_origins_that_clients_send_are_taken(origin: str) -> None:
    """Of web pages, extensions and apps, in any case, and those that an error proposes."""
    (made,) = parse_config(route(f'allowed_origins: ["{origin}"]')).reverse_proxy.routes
    assert made.allowed_origins == [origin]


# Wrong configurations


@pytest.mark.parametrize(
    ("text", "expected"), [pytest.param(*case, id=str(at)) for at, case in enumerate(cases())]
)
def test_a_wrong_configuration(text: str, expected: list[str]) -> None:
    """Every error, whole, with its path, the accepted form and the value as the file has it."""
    assert errors(text) == expected
    assert "u:p" not in "".join(expected)  # a credential in a URL


@pytest.mark.parametrize("url", ["h", "ftp://h", "http://u:p@h", "http://h:0", "http://a..b"])
def test_serve_upstream_refuses_what_an_endpoint_cannot_be(url: str) -> None:
    (error,) = errors(configuration(upstreams=f'{{name: llm, endpoints: ["{url}"]}}'))
    with pytest.raises(ConfigError) as caught:
        single_upstream(url)
    assert caught.value.errors == (
        error.replace("reverse_proxy.upstreams[0].endpoints[0]", "--upstream"),
    )


@pytest.mark.parametrize(
    "text", ["0x10", "1_000", "yes", "[7]", "7 # comment", "", " 7", "7\n", "1e400"]
)
def test_a_reference_is_not_read_as_yaml(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a number that only YAML knows, nor as a list, a mapping or a comment."""
    monkeypatch.setenv("NUMBER", text)
    (error,) = errors(configuration(proxy="limits: {max_streams: '${NUMBER}'}"))
    assert (
        error
        == 'reverse_proxy.limits.max_streams: must be a whole number, at least 1 (got "${NUMBER}")'
    )
    monkeypatch.setenv("NUMBER", "a: b")
    assert errors(configuration(proxy="limits: '${NUMBER}'")) == [
        'reverse_proxy.limits: must be a mapping (got "${NUMBER}")'
    ]


def test_an_error_shows_a_value_as_the_file_has_it() -> None:
    """Never what a reference gave."""
    text = configuration(
        upstreams='{name: "${SECRET}", endpoints: ["ftp://${SECRET}"], ca_file: "${SECRET}", host: "${SECRET} "},'
        '{name: "${SECRET}", endpoints: ["http://h"], headers: {set: {a: "${SECRET}\\n"}, remove: ["${SECRET}:"]}}',
        routes='{path: "${SECRET}", upstream: "x${SECRET}", dialect: "${SECRET}", interceptors: ["${SECRET}"],'
        'allowed_origins: ["https://${SECRET}/"], listening: ["${SHORT}"]}',
        proxy='timeouts: {idle: "${SECRET}"}\n  trusted_proxies: ["${SECRET}"]\n  health: {check_path: "${SECRET}"}',
        top='log: {level: "${SECRET}"}',
    )
    found = errors(text)
    assert len(found) >= 14
    assert "s3cr3t" not in "\n".join(found)
    assert '(got "${SECRET}")' in "\n".join(found)
    assert not any("AB" in error for error in found)


def test_the_error_of_an_unreadable_file_has_its_path(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    names = ("missing", "latin", "large", "")
    settings = ", ".join(
        f'h{index}: "${{file:{tmp_path}/{name}}}"' for index, name in enumerate(names)
    )
    assert errors(upstream(f"headers: {{set: {{{settings}}}}}")) == [
        f"reverse_proxy.upstreams[0].headers.set.h0: the file '{tmp_path}/missing' cannot be read: No such file or directory",
        f"reverse_proxy.upstreams[0].headers.set.h1: the file '{tmp_path}/latin' is not UTF-8",
        f"reverse_proxy.upstreams[0].headers.set.h2: the file '{tmp_path}/large' is larger than 1048576 bytes",
        f"reverse_proxy.upstreams[0].headers.set.h3: the file '{tmp_path}' cannot be read: Is a directory",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, r"\.yaml: No such file"), (b"a: \xff", r"\.yaml: not UTF-8 \(.* at byte 3\)")],
)
def test_an_unreadable_file_is_an_error(data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "weirpool.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "weirpool.yaml")


def test_a_key_that_stands_twice_is_refused() -> None:
    """At any depth, and beside other mistakes; a key that a merge brings is another."""
    text = configuration(top="log: {level: info,\n  level: debug}\nlog: {format: xml}")
    assert sum("this key stands here twice" in error for error in errors(text)) == 2


def test_a_ca_file_has_to_exist(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    parse_config(upstream(f"ca_file: {certifi.where()}"))
    (error,) = errors(upstream(f"ca_file: {tmp_path}/empty.pem"))
    assert error.startswith(
        "reverse_proxy.upstreams[0].ca_file: must be a file of PEM certificates: "
    )
    for path in (f"{tmp_path}/other.pem", str(tmp_path)):
        assert errors(upstream(f"ca_file: {path}")) == [
            f"reverse_proxy.upstreams[0].ca_file: there is no file {path!r}"
        ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("HTTPS://a:443", "https://a", True),
        ("https://A/", "Https://a:443", True),
        ("http://[::1]", "http://[0:0:0:0:0:0:0:1]:80", True),
        ("http://[FE80::1]:1", "http://[fe80::1]:1", True),
        ("http://\u00e4.test", "http://xn--4ca.test:80", True),
        ("HTTPS://a:80", "https://a", False),
        ("http://a:443", "https://a", False),
        ("http://a/x", "http://a/X", False),
    ],
)
def test_an_endpoint_is_listed_once_however_it_is_spelt(one: str, other: str, same: bool) -> None:
    text = configuration(upstreams=f'{{name: llm, endpoints: ["{one}", "{other}"]}}')
    twice = ["reverse_proxy.upstreams[0].endpoints[1]: this endpoint is listed twice"]
    if same:
        assert errors(text) == twice
    else:
        parse_config(text)


MISTAKES = """
health: {eject: soon}
reverse_proxy:
  upstreams:
    - name: llm
      endpoints: ["ftp://x"]
      ca_file: nope.pem
      headers: {set: {authorization: "Bearer ${NOPE_A}", "a b": x}}
    - nmae: two
      endpoints: http://two
      max_connections: many
    - name: llm
      endpoints: ["http://h"]
  routes:
    - {path: v1, upstream: lmm, interceptors: [redcat], dialect: OpenAI, timeouts: {idel: 3, connect: 30s}}
    - {path: /x, upstream: two, retry: {max_attempts: 0}}
    - {path: "/a b", upstream: "${NOPE_B}"}
    - {path: /y, upstream: llm, dialect: openai, interceptors: [limit, keys]}
  timeouts: {connect: -1}
interceptors:
  - {name: redact, use: redact, options: {patterns: ["(", "["], windw: 3}}
  - {name: gone, use: "no.such:Thing"}
  - {name: away, use: "./nofile.py:X"}
  - {name: keys, use: api_keys, options: {keys: {ann: x, bob: y}, upstream: "${NOPE_C}"}}
  - {name: limit, use: rate_limit, options: {requests_per_minute: 1, by: client_key, bursts: 3}}
log: {levle: info}
admin: {port: 99999}
"""


def test_every_mistake_of_every_kind_is_reported_at_once(tmp_path: Path) -> None:
    """Names, types, ranges, variables, references, files, interceptors and what they need from each
    other, in the order of the file, each at its place.
    """
    (tmp_path / "weirpool.yaml").write_text(MISTAKES)
    checked = check_config(tmp_path / "weirpool.yaml")
    assert checked.config is None
    found: dict[int | None, list[str]] = {}
    for problem in checked.problems:
        found.setdefault(problem.line, []).append(problem.path)
    proxy, first, route = "reverse_proxy", "reverse_proxy.upstreams[0]", "reverse_proxy.routes[0]"
    own = [f"interceptors[{number}]" for number in range(4)]
    assert found == {
        2: ["health", "health.eject"],
        6: [f"{first}.endpoints[0]"],
        7: [f"{first}.ca_file"],
        8: [f"{first}.headers.set.authorization", f"{first}.headers.set.a b"],
        9: [f"{proxy}.upstreams[1].nmae"],
        10: [f"{proxy}.upstreams[1].endpoints"],
        11: [f"{proxy}.upstreams[1].max_connections"],
        12: [f"{proxy}.upstreams[2].name"],
        15: [
            *(f"{route}.path", f"{route}.upstream", f"{route}.interceptors[0]", f"{route}.dialect"),
            *(f"{route}.timeouts.idel", f"{route}.timeouts.connect"),
        ],
        16: [f"{proxy}.routes[1].retry.max_attempts"],
        17: [f"{proxy}.routes[2].path", f"{proxy}.routes[2].upstream"],
        18: [f"{proxy}.routes[3].interceptors[0]"],
        19: [f"{proxy}.timeouts.connect"],
        21: [f"{own[0]}.options.{name}" for name in ("patterns[0]", "patterns[1]", "windw")],
        22: [f"{own[1]}.use"],
        23: [f"{own[2]}.use"],
        24: [f"{own[3]}.options.{name}" for name in ("keys.ann", "keys.bob", "upstream")],
        25: ["interceptors[4].options.bursts"],
        26: ["log.levle"],
        27: ["admin.port"],
    }
    lines = [problem.line or 0 for problem in checked.problems]
    assert lines == sorted(lines)
    problem, *_ = checked.problems
    assert (problem.line, problem.column, problem.file) == (2, 1, str(tmp_path / "weirpool.yaml"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "weirpool.yaml")
    assert caught.value.problems == checked.errors


def test_an_alias_that_holds_itself_and_one_that_explodes_are_refused() -> None:
    assert errors("a: &a [*a]") == ["a YAML alias holds itself"]
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert errors("\n".join(lines)) == ["this has more than 50000 values"]


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        ("a: 1\nb: \0", 2, 4, 'write it as an escape in double quotes, such as "\\u001b", or'),
        ("a: {b: ${C}}", 1, 9, 'put a value with ${...} in quotes here, as in "${VAR}"'),
        ("a: [${C:-d}]", 1, 6, 'put a value with ${...} in quotes here, as in "${VAR}"'),
        (r'a: "\d"', 1, 6, "in double quotes write"),
        ("a: [*_admin]", 1, 5, "put a value that begins with * or & in quotes"),
        ("a:\n\tb: 1", 2, 1, "indent with spaces"),
        ("a: `b`", 1, 4, "put a value that begins with this character in quotes"),
        ("a: b: c", 1, 5, "put a value that holds a colon and a space in quotes"),
        ("a: 1\n---\nb: 1", 2, 1, "a configuration is one document"),
        ("a: !secret b", 1, 4, "tags are not supported: write ${VAR} or ${file:PATH}"),
        ("a:\n  - b: 1\n   c: 2", 3, 4, "check where this line begins"),
    ],
)
def test_wrong_yaml_has_its_place(text: str, line: int, column: int, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (line, column)
    assert problem.hint.startswith(hint)


@pytest.mark.parametrize(
    "value", ["2026-99-99", "0x_", "0b", "9" * 5000, "!!int x", "!!float x", "!!timestamp x"]
)
def test_what_only_looks_like_a_number_or_a_date_is_checked_as_text(value: str) -> None:
    """PyYAML raises various exceptions for these; beside them, every other mistake is reported."""
    first, second = errors(
        f"{configuration()}drain: {{timeout: {value}}}\nlog: {{level: verbose}}\n"
    )
    assert first.startswith("drain.timeout: must be a number of seconds")
    assert second.startswith("log.level: ")


def test_a_ca_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    """As files of interceptors and of references are, wherever the process was started."""
    (tmp_path / "weirpool.yaml").write_text(
        configuration(upstreams='{name: llm, endpoints: ["https://h"], ca_file: ca.pem}')
    )
    (problem,) = check_config(tmp_path / "weirpool.yaml").problems
    assert problem.message == f"there is no file '{tmp_path}/ca.pem'"
