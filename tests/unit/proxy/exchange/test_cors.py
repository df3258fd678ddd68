"""What `Cors.grant` keeps of an answer that an interceptor has made."""

from __future__ import annotations

import pytest

from proxy.exchange.cors import Cors

PAGE = b"https://app.test"
ORIGIN, CREDENTIALS = b"access-control-allow-origin", b"access-control-allow-credentials"


@pytest.mark.parametrize(
    ("origins", "kept"),
    [
        ([PAGE], True),
        ([b"*"], False),
        ([b"https://other.test"], False),
        ([], False),
        ([PAGE, PAGE], False),
    ],
)
def test_credentials_are_allowed_only_where_the_answer_has_allowed_this_origin(
    origins: list[bytes], kept: bool
) -> None:
    """Browsers refuse them with `*`: replacing it with the origin must not allow what was not
    allowed.
    """
    cors = Cors.of(["https://app.test"], [(b"origin", PAGE)])
    assert cors is not None
    granted = cors.grant(
        [*((ORIGIN, origin) for origin in origins), (b"Access-Control-Allow-Credentials", b"true")]
    )
    assert [value for name, value in granted if name == ORIGIN] == [PAGE]
    assert any(name.lower() == CREDENTIALS for name, _ in granted) is kept
