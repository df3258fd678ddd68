"""ApiKeys: a client without a valid key gets 401; with one, the upstream gets its credential
instead of the key.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Any

import pytest

from interceptors import LoadError, Request, Response
from interceptors.api_keys import ApiKeys, ApiKeysOptions, hash_key
from interceptors.loader import load_interceptor
from interceptors.testing import run_request

USE = "interceptors.api_keys:ApiKeys"
ANN = "wk-ann-Zq3xV8"
BOB = "wk-bob-1LmT7c"
BOB_NEXT = "wk-bob-next-9"
UPSTREAM = "Bearer upstream-secret"
KEYS = {"ann": hash_key(ANN), "bob": [hash_key(BOB), hash_key(BOB_NEXT)]}


def asked(headers: list[tuple[str, str]], **options: Any) -> tuple[Response | None, Request]:
    """The answer to a request with these headers, and the request as it would go upstream."""
    request = Request(headers=[(name.encode(), value.encode("latin-1")) for name, value in headers])
    answer = run_request(
        [load_interceptor(USE, {"keys": KEYS, "upstream": UPSTREAM, **options})], request
    )
    return answer, request


@pytest.mark.parametrize(("headers", "client"), [
    ([("Authorization", f"Bearer {ANN}")], "ann"),
    ([("authorization", f"bearer  {ANN} ")], "ann"), ([("X-Api-Key", ANN)], "ann"),
    ([("x-api-key", f" {BOB} ")], "bob"), ([("authorization", f"Bearer {BOB_NEXT}")], "bob"),
    ([("authorization", f"Bearer {ANN}"), ("x-api-key", ANN)], "ann"),
    ([("x-api-key", ""), ("x-api-key", ANN), ("X-API-KEY", ANN)], "ann"),
    ([("authorization", "Basic dTpw"), ("x-api-key", ANN)], "ann"),
    ([("authorization", "Bearer"), ("x-api-key", ANN), ("x-other", "\xe9\xff")], "ann"),
])  # fmt: skip
def test_a_key_is_swapped_for_the_upstreams_credential(
    headers: list[tuple[str, str]], client: str
) -> None:
    """However it is sent."""
    answer, request = asked([("accept", "*/*"), *headers, ("x-other", "stays")])
    assert answer is None
    others = [(name, value) for name, value in headers if name == "x-other"]
    expected = [("accept", "*/*"), ("authorization", UPSTREAM), *others, ("x-other", "stays")]
    assert sorted(request.headers.multi_items()) == sorted(expected)
    assert request.state == {"client_key": client}


def test_the_credential_goes_where_the_upstream_wants_it() -> None:
    """`upstream_header` names another header, also one that the client has sent."""
    answer, request = asked(
        [
            ("authorization", f"Bearer {ANN}"),
            ("x-api-key", ANN),
            ("X-Goog-Api-Key", "the client's"),
        ],
        upstream="upstream-secret",
        upstream_header="X-Goog-Api-Key",
    )
    assert answer is None
    assert request.headers.multi_items() == [("x-goog-api-key", "upstream-secret")]


def test_an_upstream_without_a_credential_gets_none() -> None:
    """Without `upstream` the client's key is checked and removed, and nothing sent instead."""
    answer, request = asked([("authorization", f"Bearer {ANN}")], upstream=None)
    assert answer is None
    assert request.headers.multi_items() == []
    assert request.state == {"client_key": "ann"}


def test_a_header_of_ones_own_is_the_only_one_read() -> None:
    """`header` names where the key is."""
    headers = [("X-Team-Key", BOB), ("authorization", "Bearer x"), ("x-api-key", "y")]
    answer, request = asked(headers, header="x-team-key")
    assert answer is None
    assert sorted(request.headers.multi_items()) == [
        ("authorization", UPSTREAM),
        ("x-api-key", "y"),
    ]
    assert request.state == {"client_key": "bob"}
    answer, request = asked(
        headers, header="x-team-key", upstream_header="x-goog-api-key", upstream="secret"
    )
    assert answer is None
    assert sorted(request.headers.multi_items()) == [
        ("authorization", "Bearer x"),
        ("x-api-key", "y"),
        ("x-goog-api-key", "secret"),
    ]
    answer, _ = asked([("authorization", f"Bearer {BOB}")], header="x-team-key")
    assert answer is not None
    assert answer.status == 401


@pytest.mark.parametrize(
    "value", [f"Bearer {ANN}", "bearer  a b", "Basic dTpw", "DPoP x.y", "no-scheme", ""]
)
def test_with_its_own_header_the_clients_authorization_passes(value: str) -> None:
    """Unchanged, whatever its scheme, twice if it comes twice."""
    others = [("authorization", value), ("authorization", "second"), ("x-api-key", "theirs")]
    answer, request = asked(
        [("X-Gateway-Key", ANN), *others], header="X-Gateway-Key", upstream=None
    )
    assert answer is None
    assert request.headers.multi_items() == others
    assert request.state == {"client_key": "ann"}


@pytest.mark.parametrize("header", [None, "authorization", "Authorization"])
def test_otherwise_both_usual_headers_are_removed(header: str | None) -> None:
    """A client may send its key in both; a CGI script reads `x_api_key` as `x-api-key`."""
    sent = [("authorization", f"Bearer {ANN}"), ("x-api-key", ANN), ("X_Api_Key", ANN)]
    answer, request = asked(sent, header=header, upstream=None)
    assert answer is None
    assert request.headers.multi_items() == []


MISSING = "missing_api_key", "this request needs an API key", 'Bearer realm="weirpool"'
INVALID = (
    "invalid_api_key",
    "this API key is not valid",
    'Bearer realm="weirpool", error="invalid_token"',
)
SEVERAL = (
    "invalid_api_key",
    "this request has more than one API key",
    'Bearer realm="weirpool", error="invalid_token"',
)

REFUSED: dict[str, tuple[list[tuple[str, str]], tuple[str, str, str]]] = {
    "no header": ([], MISSING), "an empty header": ([("x-api-key", "")], MISSING),
    "an empty token": ([("authorization", "Bearer ")], MISSING),
    "another scheme": ([("authorization", f"Basic {ANN}")], MISSING),
    "no scheme": ([("authorization", ANN)], MISSING),
    "an unknown key": ([("authorization", "Bearer wk-nobody")], INVALID),
    "a key and more": ([("x-api-key", ANN + "x")], INVALID),
    "part of a key": ([("x-api-key", ANN[:-1])], INVALID),
    "another case": ([("x-api-key", ANN.upper())], INVALID),
    "the hash itself": ([("x-api-key", hash_key(ANN))], INVALID),
    "the digest itself": ([("x-api-key", hash_key(ANN).removeprefix("sha256:"))], INVALID),
    "bytes beyond ASCII": ([("x-api-key", "\xe9\xff")], INVALID),
    "the upstream's credential": ([("authorization", UPSTREAM)], INVALID),
    "a good and a bad one": ([("authorization", f"Bearer {ANN}"), ("x-api-key", "wk-nobody")],
        SEVERAL,),
    "a bad and a good one": ([("authorization", "Bearer wk-nobody"), ("x-api-key", ANN)],
        SEVERAL,),
    "two good ones of two clients": ([("authorization", f"Bearer {ANN}"), ("x-api-key", BOB)],
        SEVERAL,),
    "one header twice": (
        [("authorization", f"Bearer {ANN}"), ("authorization", "Bearer wk-nobody")], SEVERAL,),
}  # fmt: skip


@pytest.mark.parametrize(("header", "challenge"), [
    ("X-Gateway-Key", 'ApiKey realm="weirpool", header="x-gateway-key"'),
    ("x-api-key", 'ApiKey realm="weirpool", header="x-api-key"'),
    ("Authorization", 'Bearer realm="weirpool"'),
])  # fmt: skip
def test_a_challenge_asks_for_what_is_read(header: str, challenge: str) -> None:
    """No bearer token where it would not help; the message names the header."""
    answer, _ = asked([], header=header)
    assert answer is not None
    assert answer.headers["www-authenticate"] == challenge
    assert f"needs an API key (header {header})".encode() in answer.body
    value = "Bearer wk-nobody" if header == "Authorization" else "wk-nobody"
    answer, _ = asked([(header, value)], header=header)
    assert answer is not None
    assert answer.headers["www-authenticate"].startswith(challenge)
    assert f"not valid (header {header})".encode() in answer.body


@pytest.mark.parametrize(("headers", "expected"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_key_gets_401(
    headers: list[tuple[str, str]], expected: tuple[str, str, str]
) -> None:
    """A challenge as RFC 6750, section 3, has it, a JSON error, nothing of the key in either."""
    kind, message, challenge = expected
    answer, request = asked(headers)
    assert answer is not None
    assert answer.status == 401
    assert answer.headers.multi_items() == [
        ("www-authenticate", challenge),
        ("content-type", "application/json"),
    ]
    assert answer.body == b'{"error":{"type":"%s","message":"%s"}}' % (
        kind.encode(),
        message.encode(),
    )
    assert request.state == {}


@pytest.mark.parametrize(
    "options", [{}, {"upstream_header": "x-api-key"}, {"header": "authorization"}]
)
def test_a_preflight_goes_upstream_without_any_credential(options: dict[str, Any]) -> None:
    """The header of the upstream's credential is removed, too, where clients send their key in
    another one.
    """
    headers = [
        (b"origin", b"https://a.example"),
        (b"access-control-request-method", b"POST"),
        (b"authorization", b"Bearer of-the-client"),
        (b"x-api-key", ANN.encode()),
        (b"x-gateway-key", ANN.encode()),
    ]
    for header in ("x-gateway-key", options.get("header", "x-gateway-key")):
        request = Request(method="OPTIONS", headers=headers)
        keys = ApiKeys(
            ApiKeysOptions(**{"keys": KEYS, "upstream": UPSTREAM, "header": header} | options)
        )
        assert run_request([keys], request) is None
        assert keys.sets_headers[0] not in request.headers
        assert (options.get("header") or header) not in request.headers


def test_every_entry_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the last and no match at all take as many comparisons, each of them
    `hmac.compare_digest` of whole digests.
    """
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest

    def count(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return original(known, given)

    monkeypatch.setattr(hmac, "compare_digest", count)
    for key in (ANN, BOB_NEXT, "wk-nobody"):
        compared.clear()
        asked([("x-api-key", key)])
        assert [known for known, _ in compared] == [
            sha256(each.encode()).digest() for each in (ANN, BOB, BOB_NEXT)
        ]
        assert {given for _, given in compared} == {sha256(key.encode()).digest()}


def test_a_failure_of_the_check_refuses_every_client() -> None:
    """`on_error` is `abort`, whatever the configuration: fail closed."""
    assert ApiKeys.on_error == "abort"
    with pytest.raises(LoadError, match="unknown option `on_error`"):
        load_interceptor(USE, {"keys": KEYS, "on_error": "skip"})


GOOD = hash_key(ANN)

BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"keys": {}}, "keys: must have at least one client"),
    "a client without a name": ({"keys": {"": GOOD}}, "keys: a client's name is empty"),
    "a client without a key": ({"keys": {"ann": []}}, r"keys\.ann: the list of hashes is empty"),
    "an empty hash": ({"keys": {"ann": ""}}, r"keys\.ann: the list of hashes is empty"),
    "a key instead of a hash": (
        {"keys": {"ann": ANN}},
        r"keys\.ann: expected \"sha256:\" and 64 hexadecimal digits.*weirpool new-key",
    ),
    "a hash without its name": ({"keys": {"ann": GOOD[7:]}}, r"keys\.ann: expected"),
    "a hash cut short": ({"keys": {"bob": [GOOD, GOOD[:-1]]}}, r"keys\.bob\[1\]: expected"),
    "a hash with a line end": ({"keys": {"ann": GOOD + "\n"}}, r"keys\.ann: expected"),
    "another hash": ({"keys": {"ann": "md5:" + "0" * 64}}, r"keys\.ann: expected"),
    "a key of two clients": (
        {"keys": {"ann": GOOD, "bob": GOOD.upper().replace("SHA", "sha")}},
        r"keys\.bob: duplicate key: already assigned to 'ann'",
    ),
    "a key twice": (
        {"keys": {"ann": [GOOD, GOOD]}},
        r"keys\.ann\[1\]: duplicate key: already assigned to 'ann'",
    ),
    "an empty variable": (
        {"keys": KEYS, "upstream": "Bearer "},
        "upstream: expected a header value",
    ),
    "an empty credential": ({"keys": KEYS, "upstream": ""}, "upstream: expected a header value"),
    "two headers in one": (
        {"keys": KEYS, "upstream": "a\r\nx: y"},
        "upstream: expected a header value",
    ),
    "a header with its value": (
        {"keys": KEYS, "upstream_header": f"x-api-key: {ANN}"},
        "upstream_header: expected",
    ),
    "no name to read": ({"keys": KEYS, "header": ""}, "header: expected a header name"),
    "a header of the hop": (
        {"keys": KEYS, "upstream_header": "Proxy-Authorization"},
        "upstream_header: .* does not go upstream",
    ),
    "another header of the hop": (
        {"keys": KEYS, "upstream_header": "Keep-Alive"},
        "upstream_header: .* does not go upstream",
    ),
    "a key in a header of the hop": (
        {"keys": KEYS, "header": "Proxy-Authorization"},
        "header: .* interceptors do not see it",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused_with_their_path(options: dict[str, Any], message: str) -> None:
    """The path of the mistake and what is expected there, when the configuration is loaded."""
    with pytest.raises(ValueError, match="^" + message):
        ApiKeys(ApiKeysOptions(**options))
    with pytest.raises(LoadError) as caught:
        load_interceptor(USE, options)
    assert re.match(message, f"{caught.value.option}: {caught.value}")
    assert ANN not in str(caught.value)


def test_options_do_not_show_the_credential() -> None:
    """Printed in a traceback or a debugger, they name clients and hashes, and not what the upstream
    accepts.
    """
    assert "secret" not in repr(ApiKeysOptions(keys=KEYS, upstream=UPSTREAM))


def test_a_hash_is_what_other_tools_make() -> None:
    """`printf %s KEY | sha256sum`, of the FIPS 180 example "abc"."""
    assert (
        hash_key("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("key", ["", "two words", "line end\n", "\xe9", " abc"])
def test_what_no_client_could_send_has_no_hash(key: str) -> None:
    """An unset variable, a line end that came along."""
    with pytest.raises(ValueError, match="visible ASCII"):
        hash_key(key)
