"""Foreign exceptions of sockets, TLS and name resolution become ours here, and nowhere else.

What is ours (descriptors, memory, local ports, threads) becomes `OutOfResources`: it says nothing
about an endpoint.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Any

from ..errors import OutOfResources, UpstreamFailure
from .origin import Origin

__all__ = ["failure_of", "has_spare_descriptors", "is_out_of_resources", "reason"]

_OURS = frozenset(
    [
        *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL),
        errno.ENOSPC,  # epoll_ctl(2): too many watched descriptors
    ]
)
_LOOKUP_DESCRIPTORS = 4  # getaddrinfo opens a file, a netlink socket and up to two DNS sockets


def failure_of(origin: Origin, error: OSError, otherwise: type[UpstreamFailure]) -> UpstreamFailure:
    """What an error of a socket is: `OutOfResources` where it is ours, else `otherwise`."""
    kind = otherwise
    if isinstance(error, ssl.SSLError):
        # OpenSSL may read the authorities from files during the handshake, and does not say why it
        # could not.
        if isinstance(error, ssl.SSLCertVerificationError) and not has_spare_descriptors():
            kind = OutOfResources
    elif is_out_of_resources(error.errno):
        kind = OutOfResources
    return kind(f"{origin}: {reason(error)}")


def is_out_of_resources(number: int | None, family: int | None = None, address: Any = None) -> bool:
    """Whether an errno is about our resources. With the address that could not be connected to,
    EADDRNOTAVAIL counts only where this machine has an address to connect from; without IPv6, `::1`
    fails with the same error.
    """
    if number == errno.EADDRNOTAVAIL and family is not None:
        return _has_source_address(family, address)
    return number in _OURS


def has_spare_descriptors() -> bool:
    """Whether this process can open as many descriptors as a look-up may need."""
    opened: list[int] = []
    try:
        for _ in range(_LOOKUP_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return not is_out_of_resources(error.errno)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def _has_source_address(family: int, address: Any) -> bool:
    """UDP has its own ports, so it fails only for want of an address. Sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def reason(error: OSError) -> str:
    """What went wrong, in words, without addresses or numbers that mean nothing to a reader."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error.strerror or error}"
    return (
        os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or "failed"
    )
