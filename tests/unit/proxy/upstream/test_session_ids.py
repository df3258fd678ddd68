"""Session ids that name their endpoint: whatever a server calls its session comes back byte for byte,
and nothing else is accepted.
"""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream import Endpoint
from proxy.upstream.session_ids import MAX_ID_BYTES, PARAMETER, SessionIds, has_mark, without_mark

URLS = ["http://one:9000", "http://two:9000/base"]


def ids_of(*urls: str, secret: bytes = b"s" * 32, upstream: str = "up") -> SessionIds:
    return SessionIds(secret, upstream, [Endpoint(url) for url in urls], signs=True)


ONE = ids_of(*URLS)
# The same sessions; and others: with another secret, name, or endpoint.
SAME = ids_of("http://three", URLS[1] + "/", URLS[0].upper().replace("HTTP", "http"))
OTHERS = [
    ids_of(*URLS, secret=b"t" * 32),
    ids_of(*URLS, upstream="other"),
    ids_of("http://one:9001", "http://two:9000"),
]


@given(
    st.binary(min_size=1, max_size=20) | st.text("!~.-_a", min_size=1, max_size=20).map(str.encode)
)
def test_a_servers_id_comes_back_and_nothing_else_is_accepted(session: bytes) -> None:
    for number, endpoint in enumerate(ONE._keys):
        sealed = ONE.seal(session, endpoint)
        assert sealed is not None
        assert re.fullmatch(rb"[!-~]+", sealed)
        assert len(sealed) <= 34 + (len(session) + 2) // 3 * 4
        opened = SAME.open(sealed)
        assert opened is not None
        assert (opened[0].base, opened[1]) == (b"/base" if number else b"", session)
        wrong = [session, b"", sealed + b"=", sealed[:-1], sealed.replace(b"w1", b"w2", 1)]
        for at in range(len(sealed)):
            wrong.append(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        assert [item for item in wrong if SAME.open(item) is not None] == []
        assert [ids for ids in OTHERS if ids.open(sealed) is not None] == []


def test_an_id_without_end_is_left_to_the_table() -> None:
    endpoint, *_ = ONE._keys
    assert ONE.seal(b"", endpoint) is ONE.seal(b"x" * (MAX_ID_BYTES + 1), endpoint) is None


@given(st.sampled_from([b"/m?", b"/m?&", b"/m?a=%2F&", b"/m;x?" + PARAMETER + b"1&"]))
def test_a_uri_comes_back_without_its_mark(before: bytes) -> None:
    for endpoint in ONE._keys:
        uri = before + PARAMETER
        marked = uri + ONE.mark(uri, endpoint)
        assert SAME.open_uri(marked) is not None
        assert [ids for ids in OTHERS if ids.open_uri(marked) is not None] == []
        for wrong in (b"/x" + marked, marked + b"&a", marked[:-1], uri, marked.replace(b"m", b"n")):
            assert has_mark(wrong)
            assert SAME.open_uri(wrong) is None
        stripped = without_mark(b"/inner" + marked[2:], marked)
        assert stripped == b"/inner" + (before[2:-1] if before != b"/m?" else b"")
        assert without_mark(b"/changed?b=1", marked) == b"/changed?b=1"
