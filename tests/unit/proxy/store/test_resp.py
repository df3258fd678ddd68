"""RESP3: every kind of value, however it is cut; what is not RESP3 is refused; answers keep their places."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from proxy.store.resp import Connection, ProtocolError, Push, Reader, ServerError, encode

VALUES = [
    (b"+OK\r\n", b"OK"), (b":-12\r\n", -12), (b"(123456789012345678901\r\n", 123456789012345678901),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"), (b"$0\r\n\r\n", b""), (b"$-1\r\n", None), (b"_\r\n", None),
    (b"#t\r\n", True), (b"#f\r\n", False), (b",1.5\r\n", 1.5), (b"=5\r\ntxt:a\r\n", b"txt:a"),
    (b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n", [[1], b"x"]), (b"*0\r\n", []), (b"~1\r\n+a\r\n", [b"a"]),
    (b"%1\r\n+k\r\n:1\r\n", {b"k": 1}), (b"|1\r\n+ttl\r\n:1\r\n+after\r\n", b"after"),
    (b">3\r\n+message\r\n+c\r\n+m\r\n", Push([b"message", b"c", b"m"])),
]  # fmt: skip
GARBAGE = [
    b"HTTP/1.1 400\r\n", b"\x00", b":x\r\n", b"$x\r\n", b"*\xff\r\n", b"+" + b"a" * 70_000, b"$999999999\r\n", b"*1\r\n" * 20,
    b"%1\r\n*0\r\n:1\r\n",
]  # fmt: skip


def test_every_value_whole_and_cut() -> None:
    whole = b"".join(data for data, _ in VALUES)
    expected = [value for _, value in VALUES]
    assert Reader().feed(whole) == expected
    for size in (1, 2, 7):
        reader, found = Reader(), []
        for at in range(0, len(whole), size):
            found += reader.feed(whole[at : at + size])
        assert found == expected
        assert [type(item) for item in found] == [type(item) for item in expected]
    for data in (b"-ERR no\r\n", b"!6\r\nERR no\r\n"):
        (error,) = Reader().feed(data)
        assert isinstance(error, ServerError)
        assert str(error) == "ERR no"


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_not_resp3(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader().feed(data)


def test_a_command() -> None:
    assert encode((b"SET", "ä", 5)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$1\r\n5\r\n"


@pytest.mark.parametrize(
    ("last", "error"),
    [(b"+a\r\n+b\r\n+c\r\n+d\r\n", ProtocolError), (b"+a\r\n", ConnectionResetError)],
)
async def test_a_connection_that_ends_fails_what_is_open(
    last: bytes, error: type[Exception]
) -> None:
    """An answer to no command ends it too. Commands leave together, and answers keep their places."""
    client, server = memory_stream_pair()
    pushed: list[Push] = []
    connection = Connection(client, pushed.append)
    async with trio.open_nursery() as nursery:
        answers = [connection.ask(b"GET", name) for name in ("a", "b", "c")]
        nursery.start_soon(connection.run)
        assert (await server.receive_some()).count(b"GET") == 3
        await server.send_all(b">2\r\n+x\r\n+y\r\n" + last)
        await server.send_eof()
        assert await answers[0].get() == b"a"
        with pytest.raises(error):
            await (answers[1] if error is ConnectionResetError else connection.ask(b"PING")).get()
    assert pushed == [[b"x", b"y"]]
    with pytest.raises(error):
        await connection.ask(b"GET", "late").get()
