"""The configuration: what is accepted and how it reads, and for each mistake the line that names
its path.
"""

from __future__ import annotations

import json
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

EXAMPLE = """
reverse_proxy:
  upstreams:
    - name: llm
      endpoints: ["https://api.example.com"]
      host: upstream                      # the Host header: upstream (default), preserve, or a literal
      ca_file: null                       # verify against this CA instead of the system's
      headers: {set: {authorization: "Bearer ${LLM_API_KEY}"}, remove: [x-internal]}
      max_connections: 10000
  routes:                                 # the longest matching prefix wins
    - path: /
      upstream: llm
      interceptors: [redact-keys]
      dialect: generic
      timeouts: {idle: null}              # a route may override timeouts, limits, heartbeat, reconnect, retry
      allowed_hosts: null                 # lists; a Host or Origin not in them gets 403
      allowed_origins: null
      strip_prefix: false
  buffer_pools:                           # sizes in bytes
    sse_event:     {size: 4096,  max_pooled: 1000}
    http_response: {size: 16384, max_pooled: 500}
    json:          {size: 8192,  max_pooled: 500}
  timeouts: {connect: 10, write: 30, first_byte: 120, idle: 300, send: 30, total: null}   # seconds; null: none
  limits: {max_event_bytes: 1048576, max_request_body_bytes: 16777216, max_streams: 10000, max_streams_per_client: null}
  heartbeat: {interval: null, early: false}   # seconds of silence before a comment line; early: before the first byte
  reconnect: {enabled: false, max_attempts: 5, initial_backoff: 1, max_backoff: 60}
  retry: {max_attempts: 2, budget: 0.2}       # at most this share of requests may be retries
  health: {consecutive_failures: 5, eject: 10, max_eject: 300, check_path: null, check_interval: 10}
  trusted_proxies: []                     # addresses or networks whose Forwarded/X-Forwarded-* are believed
  leak_detection: none                    # none, sampled, paranoid
interceptors:
  - name: redact-keys
    use: interceptors.redact:Redact       # package.module:Class, or an entry point's name
    options: {patterns: ["sk-[A-Za-z0-9]{20,}"]}
reporting: {interval: 60}                 # seconds between pool reports in the log
drain: {timeout: 30, delay: 0}            # seconds live streams may go on after SIGTERM; delay before listeners close
admin: {prefix: "", port: null}           # /metrics, /healthz, /readyz, /status; an upstream's own are shadowed there
log: {format: json, level: info}
"""

UPSTREAM = '{name: llm, endpoints: ["http://h"]}'
ROUTE = "{path: /, upstream: llm}"


def configuration(
    *, upstreams: str = UPSTREAM, routes: str = ROUTE, proxy: str = "", top: str = ""
) -> str:
    """A small right configuration, with parts of it replaced and lines added."""
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


# What is right


def test_the_example_of_the_design_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """And means what it says; it holds the defaults, so leaving them all out means the same."""
    monkeypatch.setenv("LLM_API_KEY", "k:1")
    config = parse_config(EXAMPLE)
    (one,) = config.reverse_proxy.upstreams
    assert one.headers.set == {"authorization": "Bearer k:1"}
    assert one.headers.remove == ["x-internal"]
    assert config.interceptors[0].options == {"patterns": ["sk-[A-Za-z0-9]{20,}"]}
    (only,) = config.reverse_proxy.routes
    assert config.timeouts_of(only).idle is None
    assert config.reverse_proxy.timeouts.idle == 300
    short = parse_config(configuration())
    for name in ("buffer_pools", "timeouts", "limits", "heartbeat", "reconnect", "retry", "health"):
        assert getattr(short.reverse_proxy, name) == getattr(config.reverse_proxy, name)
    for name in ("reporting", "drain", "admin", "log"):
        assert getattr(short, name) == getattr(config, name)


def test_a_route_overrides_only_what_it_names() -> None:
    config = parse_config(
        configuration(
            routes="{path: /a, upstream: llm, timeouts: {idle: null, connect: 2.5}, limits: {max_streams: 7}},"
            "{path: /b, upstream: llm}",
            proxy="timeouts: {connect: 1, send: 3}\n  limits: {max_event_bytes: 2048}",
        )
    )
    a, b = config.reverse_proxy.routes
    assert config.timeouts_of(a) == Timeouts(connect=2.5, send=3, idle=None)
    assert config.timeouts_of(b) == Timeouts(connect=1, send=3)
    assert config.limits_of(a) == Limits(max_event_bytes=2048, max_streams=7)
    assert config.limits_of(b) == Limits(max_event_bytes=2048)


def test_a_configuration_is_frozen() -> None:
    config = parse_config(configuration())
    with pytest.raises(AttributeError):
        config.reverse_proxy.timeouts.idle = 1  # type: ignore[misc]


def test_variables_are_replaced_wherever_a_text_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several in one, empty ones too; what only looks like one stays, and what they hold is not
    looked at again.
    """
    monkeypatch.setenv("HOST_NAME", "h")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NESTED", "${HOST_NAME}")
    config = parse_config(
        configuration(
            upstreams='{name: llm, endpoints: ["http://${HOST_NAME}:80${EMPTY}"],'
            ' headers: {set: {a: "${NESTED}", b: "$HOST_NAME $${HOST_NAME} }", c: "x${EMPTY}${HOST_NAME}"}}}'
        )
    )
    (one,) = config.reverse_proxy.upstreams
    assert one.endpoints == ["http://h:80"]
    assert one.headers.set == {"a": "${HOST_NAME}", "b": "$HOST_NAME ${HOST_NAME} }", "c": "xh"}


def value_of(text: str) -> str:
    config = parse_config(upstream(f"headers: {{set: {{a: {json.dumps(text)}}}}}"))
    return config.reverse_proxy.upstreams[0].headers.set["a"]


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
    ],
)
def test_a_default_stands_in_for_what_is_unset_or_empty(
    text: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POSIX, 2.6.2: `:-`. A default may hold references, which are looked up only when it is used;
    `$${` is a literal `${`.
    """
    monkeypatch.setenv("SET", "set")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    ["${1X}", "${}", "${ SET}", "${SET", "${SET-x}", "${SET:=x}", "${SET:?x}", "${SET:+x}", "${SET:x}", "${env:SET}", "${file:}",
     "${file:/x", "x ${SET:-${SET}", "${SET:-${1}}", "${UNSET:-${bad-}}", "${{SET}}", "${SÉT}"],
)  # fmt: skip
def test_what_else_begins_like_a_reference_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go upstream as it stands. The error shows it, and the forms that there are."""
    monkeypatch.setenv("SET", "set")
    (error, *_) = errors(
        upstream(f"headers: {{set: {{a: {json.dumps(text, ensure_ascii=False)}}}}}")
    )
    path, _, message = error.partition(": ")
    assert path == "reverse_proxy.upstreams[0].headers.set.a"
    assert (
        "is not a reference: write ${VAR}, ${VAR:-default} or ${file:PATH}, and $${ for a literal ${"
        in message
    )


def test_a_key_that_holds_a_reference_is_refused() -> None:
    """Only values are replaced."""
    (error,) = errors(
        configuration(top='interceptors: [{name: a, use: b, options: {keys: {"${NAME}": x}}}]')
    )
    assert error == "interceptors[0].options.keys.${NAME}: a key must not hold ${"


@pytest.mark.parametrize(
    ("setting", "attribute", "value"),
    [
        ("limits: {max_streams: '${NUMBER}'}", "limits.max_streams", 7),
        (
            "limits: {max_streams_per_client: '${UNSET:-null}'}",
            "limits.max_streams_per_client",
            None,
        ),
        ("timeouts: {idle: '${FRACTION}', connect: '${NUMBER}'}", "timeouts.idle", 2.5),
        ("heartbeat: {early: '${TRUE}', interval: 1}", "heartbeat.early", True),
        ("timeouts: {idle: '${UNSET:-null}'}", "timeouts.idle", None),
    ],
)
def test_a_reference_can_be_a_number(
    setting: str, attribute: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gives is text, and a key that wants a number, a truth value or null takes text that
    spells one.
    """
    for name, text in {"NUMBER": "7", "FRACTION": "2.5", "TRUE": "true"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("UNSET", raising=False)
    found: object = parse_config(configuration(proxy=setting)).reverse_proxy
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["0x10", "1_000", "yes", "[7]", "7 # comment", "", " 7", "7\n", "1e400"]
)
def test_what_a_reference_gives_is_not_read_as_yaml(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_an_error_never_shows_what_a_reference_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is shown as the file has it, also inside messages and guesses, and also where the
    value is used by its parts.
    """
    monkeypatch.setenv("SECRET", "s3cr3t-of-mine")
    monkeypatch.setenv("SHORT", "ab")
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


def test_a_file_is_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${file:PATH}`: relative to the configuration, without one line end at its end; the path may
    hold references.
    """
    (tmp_path / "secrets").mkdir()
    for name, data in {"key": b"k1\n", "two": b"k2\n\n", "crlf": b"k3\r\n", "bare": b"k4"}.items():
        (tmp_path / "secrets" / name).write_bytes(data)
    monkeypatch.setenv("CREDENTIALS", str(tmp_path / "secrets"))
    monkeypatch.chdir("/")
    (tmp_path / "weirpool.yaml").write_text(
        upstream(
            'headers: {set: {a: "Bearer ${file:secrets/key}", b: "${file:${CREDENTIALS}/crlf}", c: "${file:secrets/bare}"}}'
        )
    )
    (one,) = load_config(tmp_path / "weirpool.yaml").reverse_proxy.upstreams
    assert one.headers.set == {"a": "Bearer k1", "b": "k3", "c": "k4"}
    (tmp_path / "secrets" / "key").write_text("new")
    (one,) = load_config(tmp_path / "weirpool.yaml").reverse_proxy.upstreams
    assert one.headers.set["a"] == "Bearer new"
    (tmp_path / "weirpool.yaml").write_text(upstream('headers: {set: {a: "${file:secrets/two}"}}'))
    with pytest.raises(
        ConfigError, match=r"headers\.set\.a: the value holds characters that a header cannot hold"
    ):
        load_config(tmp_path / "weirpool.yaml")


def test_a_file_that_cannot_be_read_is_told_with_its_path(tmp_path: Path) -> None:
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


def test_anchors_and_merges_are_read() -> None:
    """A key that a merge brings as well is no duplicate."""
    config = parse_config(
        configuration(
            upstreams='&one {name: llm, endpoints: ["http://h"], max_connections: 5}, {<<: *one, name: other}',
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


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weirpool.yaml"
    path.write_text(configuration(), encoding="utf-8")
    assert load_config(path) == load_config(str(path)) == parse_config(configuration())


# What is wrong


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 \(.* at byte 3\)"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "this is empty: it must have the key `reverse_proxy`"),
        ("[]", "line 1, column 1: must be a mapping (got [])"),
        ("interceptors: []", "reverse_proxy: missing key `reverse_proxy`"),
        ("a: [", "line 1, column 5: expected the node content, but found '<stream end>'"),
        ("? [a]\n: b", "line 1, column 3: found unhashable key"),
    ],
)
def test_what_is_no_mapping_or_no_yaml_is_refused(text: str, error: str) -> None:
    """With its place in the text where there is no path."""
    assert errors(text) == [error]


def test_python_tags_are_refused() -> None:
    """The loader is the safe one."""
    (error,) = errors("a: !!python/object/apply:os.getcwd []")
    assert "could not determine a constructor" in error


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        (
            configuration(top="nope: 1"),
            "nope",
            "the keys here are reverse_proxy, interceptors, reporting, drain, admin, log",
        ),
        (
            configuration(proxy="nope: 1"),
            "reverse_proxy.nope",
            "the keys here are upstreams, routes, buffer_pools, timeouts",
        ),
        (
            upstream("nope: 1"),
            "reverse_proxy.upstreams[0].nope",
            "the keys here are name, endpoints, host, ca_file",
        ),
        (
            upstream("headers: {add: {}}"),
            "reverse_proxy.upstreams[0].headers.add",
            "the keys here are set, remove",
        ),
        (
            route("nope: 1"),
            "reverse_proxy.routes[0].nope",
            "the keys here are path, upstream, interceptors, dialect",
        ),
        (
            route("timeouts: {idel: 1}"),
            "reverse_proxy.routes[0].timeouts.idel",
            "did you mean `idle`?",
        ),
        (
            route("limits: {x: 1}"),
            "reverse_proxy.routes[0].limits.x",
            "the keys here are max_event_bytes",
        ),
        (
            configuration(proxy="timeouts: {idel: 1}"),
            "reverse_proxy.timeouts.idel",
            "did you mean `idle`?",
        ),
        (
            configuration(proxy="buffer_pools: {sse: {size: 1}}"),
            "reverse_proxy.buffer_pools.sse",
            "the keys here are sse_event",
        ),
        (configuration(top="log: {LEVEL: info}"), "log.LEVEL", "did you mean `level`?"),
        (
            configuration(top="interceptors: [{name: a, use: b, opts: {}}]"),
            "interceptors[0].opts",
            "did you mean `options`?",
        ),
        (configuration(top="1: x"), "1", "the keys here are reverse_proxy"),
        # right, and at the wrong place
        (configuration(top="health: {eject: 1}"), "health", "it belongs under `reverse_proxy`"),
        (
            configuration(proxy="log: {level: info}"),
            "reverse_proxy.log",
            "it belongs at the top level",
        ),
        (
            route("idle: 5"),
            "reverse_proxy.routes[0].idle",
            "it belongs under `reverse_proxy.routes[0].timeouts`",
        ),
        (route("port: 9000"), "reverse_proxy.routes[0].port", "it belongs under `admin`"),
        (
            upstream("set: {}"),
            "reverse_proxy.upstreams[0].set",
            "it belongs under `reverse_proxy.upstreams[0].headers`",
        ),
        (
            configuration(top="retry: {budget: 0.1}"),
            "retry",
            "it belongs under `reverse_proxy.routes[]` or under `reverse_proxy`",
        ),
        (
            configuration(top="leak_detektion: none"),
            "leak_detektion",
            "did you mean `leak_detection`, under `reverse_proxy`?",
        ),
    ],
)
def test_an_unknown_key_is_refused(text: str, path: str, hint: str) -> None:
    """With the nearest name, the place where it belongs, or the names that there are."""
    (error,) = errors(text)
    key = path.rpartition(".")[2]
    assert error.startswith(f"{path}: unknown key `{key}`: {hint}")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            upstream("max_connections: many"),
            'upstreams[0].max_connections: must be a whole number, at least 1 (got "many")',
        ),
        (
            upstream("max_connections: true"),
            "upstreams[0].max_connections: must be a whole number, at least 1 (got true)",
        ),
        (
            upstream("max_connections: 1.5"),
            "upstreams[0].max_connections: must be a whole number, at least 1 (got 1.5)",
        ),
        (
            upstream("max_connections: 0"),
            "upstreams[0].max_connections: must be a whole number, at least 1 (got 0)",
        ),
        (
            upstream("max_connections: 99999999999999999999"),
            "upstreams[0].max_connections: must be a whole number, at least 1 (got 99999999999999999999)",
        ),
        (
            upstream("headers: {remove: x}"),
            'upstreams[0].headers.remove: must be a list: write it in brackets, for a list of one (got "x")',
        ),
        (
            upstream("headers: {set: {a: 5}}"),
            "upstreams[0].headers.set.a: must be a string: write it in quotes",
        ),
        (
            upstream("headers:"),
            "upstreams[0].headers: must be a mapping: leave the key out for its default (got null)",
        ),
        (
            configuration(upstreams="{name: '', endpoints: ['http://h']}"),
            'upstreams[0].name: must not be empty (got "")',
        ),
        (
            configuration(upstreams="{name: llm, endpoints: []}"),
            "upstreams[0].endpoints: must have at least one entry",
        ),
        (configuration(upstreams="{name: llm}"), "upstreams[0].endpoints: missing key `endpoints`"),
        (configuration(routes=""), "routes: must have at least one entry (got [])"),
        (
            configuration(routes=f"{ROUTE}, {{path: v1, upstream: llm}}"),
            'routes[1].path: must start with "/": did you mean "/v1"? (got "v1")',
        ),
        (route("strip_prefix: 1"), "routes[0].strip_prefix: must be true or false (got 1)"),
        (
            route("timeouts: {idle: 0}"),
            "routes[0].timeouts.idle: must be a positive number of seconds, at most 31536000, or null (got 0)",
        ),
        (
            route("timeouts: {idle: 5m}"),
            "routes[0].timeouts.idle: must be a positive number of seconds, at most 31536000, or null: did you mean 300?",
        ),
        (
            route("limits: {max_event_bytes: 1MB}"),
            'routes[0].limits.max_event_bytes: must be a whole number of bytes, at least 64: did you mean 1048576? (got "1MB")',
        ),
        (
            route("listening: [get]"),
            'routes[0].listening[0]: must be a method in capitals, such as GET: did you mean "GET"?',
        ),
        (
            route("dialect: OpenAI"),
            'routes[0].dialect: must be one of openai, anthropic, mcp, generic, abort: did you mean openai? (got "OpenAI")',
        ),
        (
            route("dialect: klingon"),
            'routes[0].dialect: must be one of openai, anthropic, mcp, generic, abort (got "klingon")',
        ),
        (
            configuration(proxy="timeouts: {connect: .nan}"),
            "timeouts.connect: must be a positive number of seconds, at most 31536000, or null (got .nan)",
        ),
        (
            configuration(proxy="retry: {budget: 2}"),
            "retry.budget: must be a number from 0 to 1 (got 2)",
        ),
        (
            configuration(proxy="leak_detection: some"),
            'leak_detection: must be one of none, sampled, paranoid (got "some")',
        ),
        (
            configuration(proxy="buffer_pools: {json: {size: 1023, max_pooled: 1}}"),
            "buffer_pools.json.size: must be a whole number of bytes from 1024 to 16777216 (got 1023)",
        ),
        (
            configuration(proxy="buffer_pools: {json: {size: 4096}}"),
            "buffer_pools.json.max_pooled: missing key `max_pooled`",
        ),
        (
            configuration(top="drain: {timeout: -1}"),
            "drain.timeout: must be a number of seconds from 0 to 31536000 (got -1)",
        ),
        (configuration(top="drain: 5"), "drain: must be a mapping (got 5)"),
        (
            configuration(top="admin: {prefix: x/}"),
            'admin.prefix: must be empty, or start with "/" and not end with "/": did you mean "/x"? (got "x/")',
        ),
        (
            configuration(top="admin: {host: localhost}"),
            'admin.host: must be an IP address, such as 127.0.0.1: did you mean "127.0.0.1"? (got "localhost")',
        ),
        (
            configuration(top="log: {format: xml}"),
            'log.format: must be one of json, console (got "xml")',
        ),
    ],
)
def test_a_wrong_type_or_value_is_refused(text: str, error: str) -> None:
    """In the words of the documentation, with the accepted form, the value as it is written, and
    what was probably meant.
    """
    (found,) = errors(text)
    assert found.removeprefix("reverse_proxy.").startswith(error)


def test_a_key_that_stands_twice_is_refused() -> None:
    """At any depth, and beside other mistakes; a key that a merge brings is another."""
    text = configuration(top="log: {level: info,\n  level: debug}\nlog: {format: xml}")
    assert sum("this key stands here twice" in error for error in errors(text)) == 2


def test_an_unset_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty key sent as a credential is worse than no start."""
    monkeypatch.delenv("LLM_API_KEY", raising=False)
    assert errors(EXAMPLE) == [
        "reverse_proxy.upstreams[0].headers.set.authorization: the environment variable LLM_API_KEY is not set"
    ]
    assert errors(
        configuration(top="interceptors: [{name: a, use: b, options: {x: ['', '${LLM_API_KEY}']}}]")
    ) == ["interceptors[0].options.x[1]: the environment variable LLM_API_KEY is not set"]


def test_a_route_to_an_upstream_that_does_not_exist_is_refused() -> None:
    routes = "{path: /a, upstream: llm}, {path: /b, upstream: llm}, {path: /c, upstream: lmm}"
    assert errors(configuration(routes=routes)) == [
        'reverse_proxy.routes[2].upstream: no upstream is called "lmm": did you mean "llm"?'
    ]


def test_an_interceptor_that_is_not_configured_is_refused() -> None:
    text = configuration(
        routes="{path: /, upstream: llm, interceptors: [a, b]}",
        top="interceptors: [{name: a, use: m:C}]",
    )
    assert errors(text) == [
        'reverse_proxy.routes[0].interceptors[1]: no interceptor is called "b": there is "a"'
    ]


def test_names_and_paths_are_unique() -> None:
    text = configuration(
        upstreams=f"{UPSTREAM}, {UPSTREAM}",
        routes=f"{ROUTE}, {ROUTE}",
        top="interceptors: [{name: a, use: m:C}, {name: a, use: m:D}]",
    )
    assert errors(text) == [
        "reverse_proxy.upstreams[1].name: another upstream is called 'llm'",
        "reverse_proxy.routes[1].path: another route has the path '/' (got \"/\")",
        "interceptors[1].name: another interceptor is called 'a'",
    ]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "h",
            "h:80",
            "//h",
            "ftp://h",
            "http://",
            "http:///a",
            "http://:80",
            "http://u@h",
            "http://u:p@h",
            "http://@h",
        ),
        *(
            "http://h?a",
            "http://h/#a",
            "http://h:0",
            "http://h:65536",
            "http://h:x",
            "http://[::1",
            "http://h/a b",
            "http://h/ä",
            " http://h",
            "http://h/x?",
            "http://1.2.3.400",
            "http://a..b",
            "http://[v1.x]/",
        ),
    ],
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    """By both ways in, in the same words."""
    (error,) = errors(configuration(upstreams=f'{{name: llm, endpoints: ["{url}"]}}'))
    assert error.startswith("reverse_proxy.upstreams[0].endpoints[0]: ")
    assert "u:p" not in error  # a credential in a URL is not repeated
    with pytest.raises(ConfigError) as caught:
        single_upstream(url)
    assert caught.value.errors == (
        error.replace("reverse_proxy.upstreams[0].endpoints[0]", "--upstream"),
    )


def test_a_ca_file_has_to_exist(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    parse_config(upstream(f"ca_file: {certifi.where()}"))
    (error,) = errors(upstream(f"ca_file: {tmp_path}/empty.pem"))
    assert error.startswith(
        "reverse_proxy.upstreams[0].ca_file: must be a file of certificates in PEM: "
    )
    for path in (f"{tmp_path}/other.pem", str(tmp_path)):
        assert errors(upstream(f"ca_file: {path}")) == [
            f"reverse_proxy.upstreams[0].ca_file: there is no file {path!r}"
        ]


@pytest.mark.parametrize(
    "host", ["h/x", "u@h", "'h:66666'", "''", "' h'", "'h '", '"a\\r\\nb"', '"h\\0"', '"h\\u00e4"']
)
def test_a_host_that_cannot_be_a_header_is_refused(host: str) -> None:
    (error,) = errors(upstream(f"host: {host}"))
    assert error.startswith(
        "reverse_proxy.upstreams[0].host: must be upstream, preserve, or a host name or address, with or without a port, such as "
    )


def test_headers_that_cannot_be_sent_are_refused() -> None:
    """Names that are no tokens, values that would end the line; with the path of each, and no
    value: it may be a secret.
    """
    assert errors(
        upstream(
            'headers: {set: {"a b": x, "": y, ok: "a\\tb", bad: "a\\nb", sp: " x", nul: "\\0", uml: "\\u00e4"}}'
        )
    ) == [
        "reverse_proxy.upstreams[0].headers.set.a b: 'a b' is not a header name",
        "reverse_proxy.upstreams[0].headers.set.: '' is not a header name",
        "reverse_proxy.upstreams[0].headers.set.bad: the value holds characters that a header cannot hold",
        "reverse_proxy.upstreams[0].headers.set.sp: the value holds characters that a header cannot hold",
        "reverse_proxy.upstreams[0].headers.set.nul: the value holds characters that a header cannot hold",
        "reverse_proxy.upstreams[0].headers.set.uml: the value holds characters that a header cannot hold",
    ]
    assert errors(upstream('headers: {remove: [ok, "a:"]}')) == [
        "reverse_proxy.upstreams[0].headers.remove[1]: 'a:' is not a header name"
    ]


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "connection", "upgrade", "te", "trailer"],
)
def test_headers_of_the_connection_are_not_for_rules(name: str) -> None:
    assert errors(upstream(f"headers: {{set: {{{name}: x}}, remove: [{name}]}}")) == [
        f"reverse_proxy.upstreams[0].headers.set.{name}: this header belongs to the connection and cannot be set",
        f"reverse_proxy.upstreams[0].headers.remove[0]: {name!r} belongs to the connection and cannot be removed",
    ]


def test_trusted_proxies_are_addresses_or_networks() -> None:
    text = configuration(
        proxy='trusted_proxies: [10.0.0.0/8, 10.0.0.1/8, "::1", "fd00::/8", nonsense, 10.0.0.0/33]'
    )
    assert [error.partition(": ")[0] for error in errors(text)] == [
        "reverse_proxy.trusted_proxies[4]",
        "reverse_proxy.trusted_proxies[5]",
    ]


def test_several_mistakes_are_told_at_once() -> None:
    text = configuration(
        upstreams='{name: llm, endpoints: ["h", "http://h", "http://H:80/"], host: ""}',
        routes="{path: /, upstream: x, interceptors: [y], timeouts: {idle: 0}, limits: {z: 1}}",
        proxy="trusted_proxies: [w]",
    )
    assert [error.partition(": ")[0] for error in errors(text)] == [
        "reverse_proxy.upstreams[0].endpoints[0]",
        "reverse_proxy.upstreams[0].endpoints[2]",
        "reverse_proxy.upstreams[0].host",
        "reverse_proxy.routes[0].upstream",
        "reverse_proxy.routes[0].interceptors[0]",
        "reverse_proxy.routes[0].timeouts.idle",
        "reverse_proxy.routes[0].limits.z",
        "reverse_proxy.trusted_proxies[0]",
    ]


def test_endpoints_health_and_retries_are_taken() -> None:
    """Several endpoints, each with its own scheme and path; a route may have its own retries."""
    text = configuration(
        upstreams='{name: llm, endpoints: ["http://a", "http://a/x", "https://a/x"]}',
        routes="{path: /, upstream: llm, retry: {max_attempts: 1}}",
        proxy="health: {consecutive_failures: 1, eject: 0.5, max_eject: 0.5, check_path: '/health?x=1', check_interval: 2}\n"
        "  retry: {max_attempts: 3, budget: 0}\n"
        "  limits: {max_streams_per_client: 5}",
    )
    config = parse_config(text)
    proxy = config.reverse_proxy
    assert proxy.upstreams[0].endpoints == ["http://a", "http://a/x", "https://a/x"]
    assert (proxy.health.check_path, proxy.health.eject, proxy.limits.max_streams_per_client) == (
        "/health?x=1",
        0.5,
        5,
    )
    retry = config.retry_of(proxy.routes[0])
    assert (retry.max_attempts, retry.budget) == (1, 0)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("health: {consecutive_failures: 0}", "health.consecutive_failures"),
        ("health: {eject: 0}", "health.eject"),
        ("health: {eject: 301}", "health.max_eject"),
        ("health: {check_path: health}", "health.check_path"),
        ("health: {check_path: '/a b'}", "health.check_path"),
        ("health: {check_path: '/a#b'}", "health.check_path"),
        ("health: {check_interval: 0}", "health.check_interval"),
        ("retry: {max_attempts: 0}", "retry.max_attempts"),
        ("retry: {budget: 1.1}", "retry.budget"),
        ("limits: {max_streams_per_client: 0}", "limits.max_streams_per_client"),
    ],
)
def test_what_health_and_retries_cannot_be_is_refused(setting: str, path: str) -> None:
    (error,) = errors(configuration(proxy=setting))
    assert error.startswith(f"reverse_proxy.{path}: ")
    if not setting.startswith("health"):
        (error,) = errors(route(setting))
        assert error.startswith(f"reverse_proxy.routes[0].{path}: ")


@pytest.mark.parametrize(
    "twice", ["http://a/x/", "http://A:80/x", "HTTP://a:80/x", "HTTP://a/x", "http://a:080/x//"]
)
def test_an_endpoint_listed_twice_is_refused(twice: str) -> None:
    """It would get twice the requests, and count as two."""
    (error,) = errors(
        configuration(upstreams=f'{{name: llm, endpoints: ["http://a/x", "{twice}"]}}')
    )
    assert error == "reverse_proxy.upstreams[0].endpoints[1]: this endpoint is listed twice"


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
def test_one_endpoint_is_recognised_however_its_url_is_spelt(
    one: str, other: str, same: bool
) -> None:
    """The scheme and the host in any case, the scheme's own port or none; a path means what it
    says.
    """
    text = configuration(upstreams=f'{{name: llm, endpoints: ["{one}", "{other}"]}}')
    if same:
        assert errors(text) == [
            "reverse_proxy.upstreams[0].endpoints[1]: this endpoint is listed twice"
        ]
    else:
        parse_config(text)


@pytest.mark.parametrize(
    ("origin", "instead"),
    [
        ("https://a.example/", "https://a.example"),
        ("https://A.example:8443/app?x#y", "https://a.example:8443"),
        ("HTTPS://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("http://[::1]:80/", "http://[::1]"),
        ("https://\u00e4.example", "https://xn--4ca.example"),
        ("app://./", "app://."),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str, instead: str) -> None:
    """It would match nothing, and say so to nobody; what is to be written instead is taken."""
    (error,) = errors(route(f'allowed_origins: ["https://fine.example", "{origin}"]'))
    path, _, problem = error.partition(": ")
    assert path == "reverse_proxy.routes[0].allowed_origins[1]"
    assert problem.endswith(f": write {instead!r}")
    parse_config(route(f'allowed_origins: ["{instead}"]'))


@pytest.mark.parametrize(
    "origin", ["a.example", "", "https://", "https:a", "https://u:p@a.example", " https://a", "https://a b", "https://a:x", "*",
               "https://*.a.example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """With what one looks like; a credential is not repeated."""
    (error,) = errors(route(f'allowed_origins: ["{origin}"]'))
    assert error.startswith("reverse_proxy.routes[0].allowed_origins[0]: ")
    assert "u:p" not in error


@pytest.mark.parametrize(
    "origin",
    ["null", "https://A.example", "http://localhost:3000", "http://[::1]:3000", "https://1.2.3.4", "chrome-extension://abc",
     "file://", "https://a:80"],
)  # fmt: skip
def test_origins_that_clients_send_are_taken(origin: str) -> None:
    """Those of web pages, extensions and apps; in any case, for they are compared so."""
    (made,) = parse_config(route(f'allowed_origins: ["{origin}"]')).reverse_proxy.routes
    assert made.allowed_origins == [origin]


def test_a_route_has_its_own_heartbeat_or_the_common_one() -> None:
    """Key by key; without an interval there is none, whatever the common setting says of `early`."""
    own = ("interval: 5", "interval: null", "early: false")
    routes = [
        "{path: /, upstream: llm}",
        *(f"{{path: /{n}, upstream: llm, heartbeat: {{{x}}}}}" for n, x in enumerate(own)),
    ]
    config = parse_config(
        configuration(proxy="heartbeat: {interval: 15, early: true}", routes=", ".join(routes))
    )
    settings = [config.heartbeat_of(route) for route in config.reverse_proxy.routes]
    assert [(item.interval, item.early) for item in settings] == [
        (15, True),
        (5, True),
        (None, True),
        (15, False),
    ]


@pytest.mark.parametrize("where", ["reverse_proxy", "reverse_proxy.routes[0]"])
def test_an_early_heartbeat_without_an_interval_is_refused(where: str) -> None:
    """It would never go out."""
    setting = "heartbeat: {early: true}"
    text = configuration(proxy=setting) if where == "reverse_proxy" else route(setting)
    assert errors(text) == [f"{where}.heartbeat.early: requires heartbeat.interval (got true)"]


@pytest.mark.parametrize("where", ["reverse_proxy", "reverse_proxy.routes[0]"])
def test_a_backoff_that_begins_above_its_most_is_refused(where: str) -> None:
    setting = "reconnect: {initial_backoff: 61}"
    text = configuration(proxy=setting) if where == "reverse_proxy" else route(setting)
    assert errors(text) == [
        f"{where}.reconnect.initial_backoff: must not be more than max_backoff (got 61)"
    ]


def test_a_route_reconnects_in_its_own_way_or_the_common_one() -> None:
    """Key by key; off unless it says otherwise."""
    routes = "{path: /, upstream: llm}, {path: /a, upstream: llm, reconnect: {enabled: true, max_attempts: 2}}"
    config = parse_config(configuration(proxy="reconnect: {max_backoff: 9}", routes=routes))
    settings = [config.reconnect_of(route) for route in config.reverse_proxy.routes]
    assert [(item.enabled, item.max_attempts, item.max_backoff) for item in settings] == [
        (False, 5, 9),
        (True, 2, 9),
    ]


@pytest.mark.parametrize("prefix", ["/a?b", "/a#b", "/a b", "/\u00e4"])
def test_a_prefix_that_can_match_nothing_is_refused(prefix: str) -> None:
    """A raw path holds neither a query nor a fragment, so such a route would never be taken."""
    (error,) = errors(
        f'reverse_proxy: {{upstreams: [{{name: llm, endpoints: ["http://h"]}}], routes: [{{path: "{prefix}", upstream: llm}}]}}'
    )
    assert error.startswith("reverse_proxy.routes[0].path: ")


# Everything at once


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
  timeouts: {connect: -1}
interceptors:
  - {name: redact, use: redact, options: {patterns: ["(", "["], windw: 3}}
  - {name: gone, use: "no.such:Thing"}
  - {name: away, use: "./nofile.py:X"}
  - {name: keys, use: api_keys, options: {keys: {ann: x, bob: y}, upstream: "${NOPE_C}"}}
log: {levle: info}
admin: {port: 99999}
"""


def test_every_mistake_of_every_kind_is_told_at_once(tmp_path: Path) -> None:
    """Names, types, ranges, variables, references, files and interceptors, in the order of the
    file, each at its place.
    """
    (tmp_path / "weirpool.yaml").write_text(MISTAKES)
    checked = check_config(tmp_path / "weirpool.yaml")
    assert checked.config is None
    assert [(problem.line, problem.path) for problem in checked.problems] == [
        (2, "health"),
        (2, "health.eject"),
        (6, "reverse_proxy.upstreams[0].endpoints[0]"),
        (7, "reverse_proxy.upstreams[0].ca_file"),
        (8, "reverse_proxy.upstreams[0].headers.set.authorization"),
        (8, "reverse_proxy.upstreams[0].headers.set.a b"),
        (9, "reverse_proxy.upstreams[1].nmae"),
        (10, "reverse_proxy.upstreams[1].endpoints"),
        (11, "reverse_proxy.upstreams[1].max_connections"),
        (12, "reverse_proxy.upstreams[2].name"),
        (15, "reverse_proxy.routes[0].path"),
        (15, "reverse_proxy.routes[0].upstream"),
        (15, "reverse_proxy.routes[0].interceptors[0]"),
        (15, "reverse_proxy.routes[0].dialect"),
        (15, "reverse_proxy.routes[0].timeouts.idel"),
        (15, "reverse_proxy.routes[0].timeouts.connect"),
        (16, "reverse_proxy.routes[1].retry.max_attempts"),
        (17, "reverse_proxy.routes[2].path"),
        (17, "reverse_proxy.routes[2].upstream"),
        (18, "reverse_proxy.timeouts.connect"),
        (20, "interceptors[0].options.patterns[0]"),
        (20, "interceptors[0].options.patterns[1]"),
        (20, "interceptors[0].options.windw"),
        (21, "interceptors[1].use"),
        (22, "interceptors[2].use"),
        (23, "interceptors[3].options.keys.ann"),
        (23, "interceptors[3].options.keys.bob"),
        (23, "interceptors[3].options.upstream"),
        (24, "log.levle"),
        (25, "admin.port"),
    ]
    first, *_ = checked.problems
    assert (first.line, first.column, first.file) == (2, 1, str(tmp_path / "weirpool.yaml"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "weirpool.yaml")
    assert caught.value.problems == checked.errors


def test_what_stands_at_another_level_is_checked_where_it_stands() -> None:
    """A file written without `reverse_proxy` is told so once for each key, and its other mistakes,
    too.
    """
    assert errors(
        'upstreams: [{name: a, endpoints: ["h"]}]\nroutes: [{path: x, upstream: b}]\n'
    ) == [
        "upstreams: unknown key `upstreams`: it belongs under `reverse_proxy`",
        "upstreams[0].endpoints[0]: 'h' is not an http:// or https:// URL: did you mean \"http://h\"?",
        "routes: unknown key `routes`: it belongs under `reverse_proxy`",
        'routes[0].path: must start with "/": did you mean "/x"? (got "x")',
        'routes[0].upstream: no upstream is called "b": there is "a"',
    ]


@pytest.mark.parametrize("key", ["null", "5", "true", "2024-01-01", "1.5"])
def test_a_name_that_is_no_text_is_refused(key: str) -> None:
    """YAML takes it for something else; the other mistakes are told beside it."""
    first, *_, last = errors(upstream(f"headers: {{set: {{{key}: x, b: 3}}}}"))
    assert first.endswith("the name must be a string: write it in quotes")
    assert last == "reverse_proxy.upstreams[0].headers.set.b: must be a string: write it in quotes"


def test_an_alias_that_holds_itself_and_one_that_explodes_are_refused() -> None:
    assert errors("a: &a [*a]") == ["a YAML alias holds itself"]
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert errors("\n".join(lines)) == ["this has more than 50000 values"]


@pytest.mark.parametrize(
    ("text", "line", "column", "hint"),
    [
        (
            "a: 1\nb: \0",
            2,
            4,
            'write it as an escape in double quotes, such as "\\u001b", or remove it',
        ),
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
def test_wrong_yaml_has_its_place_and_what_to_write_instead(
    text: str, line: int, column: int, hint: str
) -> None:
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


def test_mistakes_between_interceptors_are_reported_beside_all_others(tmp_path: Path) -> None:
    """Also about interceptors that have a wrong option themselves; warnings, too. One run shows
    everything.
    """
    (tmp_path / "weirpool.yaml").write_text(
        """
reverse_proxy:
  upstreams:
    - {name: llm, endpoints: ["http://h"]}
    - {name: unused, endpoints: ["http://h"]}
  routes:
    - {path: /, upstream: llm, dialect: openai, interceptors: [limit, keys]}
interceptors:
  - {name: limit, use: rate_limit, options: {requests_per_minute: 1, by: client_key, bursts: 3}}
  - {name: keys, use: api_keys, options: {keys: {ann: x}}}
drain: {timeout: soon}
"""
    )
    found = [
        (problem.severity, problem.line, problem.path)
        for problem in check_config(tmp_path / "weirpool.yaml").problems
    ]
    assert found == [
        ("warning", 5, "reverse_proxy.upstreams[1]"),
        ("error", 7, "reverse_proxy.routes[0].interceptors[0]"),
        ("error", 9, "interceptors[0].options.bursts"),
        ("error", 10, "interceptors[1].options.keys.ann"),
        ("error", 11, "drain.timeout"),
    ]


def test_a_ca_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    """As files of interceptors and of references are, wherever the process was started."""
    (tmp_path / "weirpool.yaml").write_text(
        configuration(upstreams='{name: llm, endpoints: ["https://h"], ca_file: ca.pem}')
    )
    (problem,) = check_config(tmp_path / "weirpool.yaml").problems
    assert problem.message == f"there is no file '{tmp_path}/ca.pem'"


def test_an_endpoint_without_a_scheme_gets_one_and_a_credential_is_not_shown() -> None:
    (error,) = errors(configuration(upstreams='{name: llm, endpoints: ["h:80"]}'))
    assert error.endswith('did you mean "http://h:80"?')
    (error,) = errors(configuration(upstreams='{name: llm, endpoints: ["user:s3cr3t@h"]}'))
    assert "s3cr3t" not in error
    (error,) = errors(configuration(upstreams='{name: llm, endpoints: ["http://h:99999"]}'))
    assert error.endswith("the port must be from 1 to 65535")
