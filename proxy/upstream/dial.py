"""Opens a socket to an origin: look-up, TCP and TLS.

The addresses of a name are tried as in RFC 8305: families alternate, each attempt starts
`ATTEMPT_DELAY_S` after the previous one or as soon as that has failed, and the first connection
wins. No socket is left open, whatever is cancelled. It has no deadlines: the caller's cancel scope
ends it.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from itertools import chain, zip_longest

import trio
from trio.lowlevel import wait_readable, wait_writable

from ..errors import ConnectFailed, OutOfResources, TlsFailed
from .failures import failure_of, is_out_of_resources
from .origin import Origin, address_family
from .resolver import Address, Resolver

__all__ = ["ATTEMPT_DELAY_S", "connect", "start_tls"]

ATTEMPT_DELAY_S = 0.25
"""RFC 8305, section 5: the recommended Connection Attempt Delay."""


async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
    """Open a connected, non-blocking socket with TCP_NODELAY. Raises `DnsFailed`, `ConnectFailed`
    and `OutOfResources`.
    """
    family = address_family(origin.host)
    addresses = (
        (Address(family, origin.host),) if family is not None else await resolver.resolve(origin)
    )
    if len(addresses) == 1:
        result = await _attempt(addresses[0], origin.port)
        results = [result]
    else:
        results = await _race(_in_turn(addresses), origin.port)
    problems: list[str] = []
    own_limit = False
    for result in results:
        if isinstance(result, socket.socket):
            return result
        problems.append(os.strerror(result.number))
        own_limit = own_limit or result.own_limit
    kind = OutOfResources if own_limit else ConnectFailed
    raise kind(f"{origin}: {'; '.join(dict.fromkeys(problems))}")


class _Failed:
    """Why an attempt failed: an errno, and whether this machine's resources are the cause. Not an
    exception, which would keep its frames alive.
    """

    __slots__ = ("number", "own_limit")

    def __init__(self, number: int, own_limit: bool) -> None:
        self.number = number
        self.own_limit = own_limit


async def _attempt(address: Address, port: int) -> socket.socket | _Failed:
    """Connect to one address."""
    place = address.at(port)
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
    except OSError as error:
        return _failed(error.errno, address, port)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex(place)
        if number == errno.EINPROGRESS:
            await wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        sock.close()
        return _failed(error.errno, address, port)
    except BaseException:
        sock.close()
        raise
    if number:
        sock.close()
        return _failed(number, address, port)
    return sock


def _failed(number: int | None, address: Address, port: int) -> _Failed:
    return _Failed(
        number or errno.EIO, is_out_of_resources(number, address.family, address.at(port))
    )


def _in_turn(addresses: Sequence[Address]) -> list[Address]:
    """The addresses with alternating families, the first one's first (RFC 8305, section 4)."""
    first = [item for item in addresses if item.family == addresses[0].family]
    others = [item for item in addresses if item.family != addresses[0].family]
    return [item for item in chain.from_iterable(zip_longest(first, others)) if item is not None]


async def _race(addresses: Sequence[Address], port: int) -> list[socket.socket | _Failed]:
    """Only the socket that connected first, or else the failure of each attempt."""
    winner: socket.socket | None = None
    failures: list[socket.socket | _Failed] = []

    async def run(address: Address, ended: trio.Event) -> None:
        nonlocal winner
        result = await _attempt(address, port)
        if isinstance(result, _Failed):
            failures.append(result)
        elif winner is None:
            winner = result
            nursery.cancel_scope.cancel()
        else:
            result.close()
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                ended = trio.Event()
                nursery.start_soon(run, address, ended)
                with trio.move_on_after(ATTEMPT_DELAY_S):
                    await ended.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    return failures if winner is None else [winner]


async def start_tls(
    origin: Origin, sock: socket.socket, context: ssl.SSLContext, name: str
) -> ssl.SSLSocket:
    """Do the TLS handshake; `name` is sent (SNI) and verified. Takes over `sock` and closes it if
    it raises `TlsFailed`, `OutOfResources` or `Cancelled`.
    """
    try:
        tls = context.wrap_socket(
            sock, server_hostname=name, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
    except (OSError, MemoryError) as error:
        sock.close()
        raise _tls_failure(origin, error) from error
    try:
        while True:
            try:
                tls.do_handshake()
                return tls
            except ssl.SSLWantReadError:
                await wait_readable(tls)
            except ssl.SSLWantWriteError:
                await wait_writable(tls)
    except (OSError, MemoryError) as error:
        tls.close()
        raise _tls_failure(origin, error) from error
    except BaseException:
        tls.close()
        raise


def _tls_failure(origin: Origin, error: OSError | MemoryError) -> TlsFailed | OutOfResources:
    if isinstance(error, MemoryError):
        return OutOfResources(f"{origin}: no memory for TLS")
    failure = failure_of(origin, error, TlsFailed)
    assert isinstance(failure, TlsFailed | OutOfResources)
    return failure
