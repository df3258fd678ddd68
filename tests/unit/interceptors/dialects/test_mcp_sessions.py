"""The name of a session of the old transport: what a client sends that has resolved what the server
announced.
"""

from __future__ import annotations

import pytest

from interceptors.dialects.mcp_sessions import canonical, session_of


@pytest.mark.parametrize(
    ("announced", "asked"),
    [
        ("/m", b"/m"),
        ("/m?", b"/m?"),  # as browsers resolve it
        ("/m?", b"/m"),  # as httpx resolves it
        ("m?s=1", b"/m?s=1"),
        ("/m??", b"/m??"),
        ("/m?s=a|b", b"/m?s=a%7Cb"),
    ],
)
def test_a_client_that_asks_for_what_was_announced_is_in_the_session(
    announced: str, asked: bytes
) -> None:
    """Also where only some clients keep a `?` that nothing follows."""
    assert session_of(b"/sse", announced) == canonical(asked)
