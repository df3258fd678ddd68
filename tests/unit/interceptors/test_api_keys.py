"""ApiKeys: a client without a valid key gets 401; with one, the upstream gets its credential
instead of the key.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest

from interceptors import Request, Response
from interceptors.api_keys import ApiKeys, ApiKeysOptions, hash_key
from interceptors.testing import run_request

ANN = "wk-ann-Zq3xV8"
BOB = "wk-bob-1LmT7c"
BOB_NEXT = "wk-bob-next-9"
UPSTREAM = "Bearer upstream-secret"
KEYS = {"ann": hash_key(ANN), "bob": [hash_key(BOB), hash_key(BOB_NEXT)]}
Fields = list[tuple[str, str]]


def asked(headers: Fields, method: str = "GET", **options: Any) -> tuple[Response | None, Request]:
    """The answer to a request with these headers, and the request as it would go upstream."""
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    request = Request(method=method, headers=fields)
    keys = ApiKeys(ApiKeysOptions(**{"keys": KEYS, "upstream": UPSTREAM, **options}))
    return run_request([keys], request), request


BEARER, OF_UPSTREAM = ("authorization", f"Bearer {ANN}"), ("authorization", UPSTREAM)
TEAM = [("X-Team-Key", BOB), ("authorization", "Bearer x"), ("x-api-key", "y")]
SWAPS: list[tuple[dict[str, Any], Fields, Fields, str]] = [
    ({}, [BEARER], [OF_UPSTREAM], "ann"), ({}, [("authorization", f"bearer  {ANN} ")], [OF_UPSTREAM], "ann"),
    ({}, [("X-Api-Key", ANN)], [OF_UPSTREAM], "ann"), ({}, [("x-api-key", f" {BOB} ")], [OF_UPSTREAM], "bob"),
    ({}, [("authorization", f"Bearer {BOB_NEXT}")], [OF_UPSTREAM], "bob"),
    ({}, [BEARER, ("x-api-key", ANN)], [OF_UPSTREAM], "ann"),
    ({}, [("x-api-key", ""), ("x-api-key", ANN), ("X-API-KEY", ANN)], [OF_UPSTREAM], "ann"),
    ({}, [("authorization", "Basic dTpw"), ("x-api-key", ANN)], [OF_UPSTREAM], "ann"),
    ({}, [("authorization", "Bearer"), ("x-api-key", ANN), ("x-other", "\xe9\xff")], [("x-other", "\xe9\xff"), OF_UPSTREAM], "ann"),
    ({"upstream": None}, [BEARER, ("accept", "*/*")], [("accept", "*/*")], "ann"),
    ({"upstream": "u", "upstream_header": "X-Goog-Api-Key"}, [BEARER, ("x-api-key", ANN), ("X-Goog-Api-Key", "theirs")],
     [("x-goog-api-key", "u")], "ann"),
    ({"header": "x-team-key"}, TEAM, [("x-api-key", "y"), OF_UPSTREAM], "bob"),
    ({"header": "x-team-key", "upstream_header": "x-goog-api-key", "upstream": "u"}, TEAM,
     [*TEAM[1:], ("x-goog-api-key", "u")], "bob"),
    # With its own header, the client's other fields pass, whatever their scheme.
    *(({"header": "X-Gateway-Key", "upstream": None}, [("X-Gateway-Key", ANN), *others], others, "ann") for others in (
        [("authorization", value), ("authorization", "second"), ("x-api-key", "theirs")]
        for value in (f"Bearer {ANN}", "bearer  a b", "Basic dTpw", "no-scheme", "")
    )),
    # Otherwise both usual ones are removed; a CGI script reads `x_api_key` as `x-api-key`.
    *(({"header": header, "upstream": None}, [BEARER, ("x-api-key", ANN), ("X_Api_Key", ANN)], [], "ann")
      for header in (None, "authorization", "Authorization")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "sent", "received", "client"), SWAPS)
def test_a_key_is_swapped_for_the_upstreams_credential(
    options: dict[str, Any], sent: Fields, received: Fields, client: str
) -> None:
    answer, request = asked(sent, **options)
    assert answer is None
    assert sorted(request.headers.multi_items()) == sorted(received)
    assert request.state == {"client_key": client}


MISSING = "missing_api_key", "this request needs an API key", 'Bearer realm="weirpool"'
WRONG = 'Bearer realm="weirpool", error="invalid_token"'
INVALID = "invalid_api_key", "this API key is not valid", WRONG
SEVERAL = "invalid_api_key", "this request has more than one API key", WRONG
REFUSED: dict[str, tuple[Fields, tuple[str, str, str]]] = {
    "no header": ([], MISSING),
    "an empty header": ([("x-api-key", "")], MISSING),
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
    "the upstream's credential": ([OF_UPSTREAM], INVALID),
    "a good and a bad one": ([BEARER, ("x-api-key", "wk-nobody")], SEVERAL),
    "two good ones of two clients": ([BEARER, ("x-api-key", BOB)], SEVERAL),
    "one header twice": ([BEARER, ("authorization", "Bearer wk-nobody")], SEVERAL),
}  # fmt: skip


@pytest.mark.parametrize(("headers", "expected"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_key_gets_401(headers: Fields, expected: tuple[str, str, str]) -> None:
    """A challenge as RFC 6750, section 3, has it, a JSON error, nothing of the key in either."""
    kind, message, challenge = expected
    answer, request = asked(headers)
    assert answer is not None
    assert answer.status == 401
    fields = [("www-authenticate", challenge), ("content-type", "application/json")]
    assert answer.headers.multi_items() == fields
    assert answer.body.decode() == f'{{"error":{{"type":"{kind}","message":"{message}"}}}}'
    assert request.state == {}


@pytest.mark.parametrize(("header", "challenge"), [
    ("X-Gateway-Key", 'ApiKey realm="weirpool", header="x-gateway-key"'),
    ("x-api-key", 'ApiKey realm="weirpool", header="x-api-key"'), ("Authorization", 'Bearer realm="weirpool"'),
])  # fmt: skip
def test_a_challenge_asks_for_what_is_read(header: str, challenge: str) -> None:
    """No bearer token where it would not help; the message names the header."""
    answer, _ = asked([], header=header)
    assert answer is not None
    assert answer.headers["www-authenticate"] == challenge
    assert f"needs an API key (header {header})".encode() in answer.body
    answer, _ = asked([(header, "Bearer wk-nobody")], header=header)
    assert answer is not None
    assert answer.headers["www-authenticate"].startswith(challenge)
    assert f"not valid (header {header})".encode() in answer.body


@pytest.mark.parametrize(("options", "left"), [
    ({}, ["x-gateway-key"]), ({"upstream_header": "x-api-key"}, ["x-gateway-key"]),
    ({"header": "authorization"}, ["x-gateway-key"]), ({"header": "x-gateway-key"}, ["x-api-key"]),
    ({"header": "x-gateway-key", "upstream_header": "x-api-key"}, ["authorization"]),
])  # fmt: skip
def test_a_preflight_loses_its_credentials(options: dict[str, str], left: list[str]) -> None:
    """Not even the header of the upstream's credential."""
    cors = [("origin", "https://a.example"), ("access-control-request-method", "POST")]
    sent = [BEARER, ("x-api-key", ANN), ("x-gateway-key", ANN)]
    answer, request = asked([*cors, *sent], "OPTIONS", **options)
    assert answer is None
    assert [name for name, _ in sent if name in request.headers] == left


def test_every_entry_is_compared_and_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, the last and no match at all take as many comparisons of whole digests."""
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest

    def count(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return original(known, given)

    def digest(key: str) -> bytes:
        return sha256(key.encode()).digest()

    monkeypatch.setattr(hmac, "compare_digest", count)
    for key in (ANN, BOB_NEXT, "wk-nobody"):
        compared.clear()
        asked([("x-api-key", key)])
        assert compared == [(digest(each), digest(key)) for each in (ANN, BOB, BOB_NEXT)]


def test_a_failure_of_the_check_refuses_every_client() -> None:
    assert ApiKeys.on_error == "abort"


def test_options_do_not_show_the_credential() -> None:
    """Printed in a traceback or a debugger."""
    assert "secret" not in repr(ApiKeysOptions(keys=KEYS, upstream=UPSTREAM))


def test_a_hash_is_what_other_tools_make() -> None:
    """`printf %s KEY | sha256sum`, of the FIPS 180 example "abc"."""
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_key("abc") == f"sha256:{digest}"


@pytest.mark.parametrize("key", ["", "two words", "line end\n", "\xe9", " abc"])
def test_what_no_client_could_send_has_no_hash(key: str) -> None:
    """An unset variable, a line end that came along."""
    with pytest.raises(ValueError, match="visible ASCII"):
        hash_key(key)
