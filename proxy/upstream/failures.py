"""Converts exceptions of sockets, TLS and name resolution to `UpstreamFailure`, in one place.

A lack of this machine's own resources (descriptors, memory, local ports, threads) becomes
`OutOfResources`, which does not count against an endpoint.
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

_OWN_LIMITS = frozenset(
    [
        *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL),
        errno.ENOSPC,  # epoll_ctl(2): too many watched descriptors
    ]
)
_LOOKUP_DESCRIPTORS = 4  # getaddrinfo opens a file, a netlink socket and up to two DNS sockets


def failure_of(origin: Origin, error: OSError, otherwise: type[UpstreamFailure]) -> UpstreamFailure:
    """The failure for a socket error: `OutOfResources`, or else `otherwise`."""
    kind = otherwise
    if isinstance(error, ssl.SSLError):
        # OpenSSL may read certificate authorities from files during the handshake, and does not
        # report why that failed.
        if isinstance(error, ssl.SSLCertVerificationError) and not has_spare_descriptors():
            kind = OutOfResources
    elif is_out_of_resources(error.errno):
        kind = OutOfResources
    return kind(f"{origin}: {reason(error)}")


def is_out_of_resources(number: int | None, family: int | None = None, address: Any = None) -> bool:
    """Whether an errno means a lack of this machine's resources.

    Give the `address` of a failed connection: EADDRNOTAVAIL also means that this machine has no
    address of the family, for example without IPv6.
    """
    if number == errno.EADDRNOTAVAIL and family is not None:
        return _has_source_address(family, address)
    return number in _OWN_LIMITS


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
    """Whether this machine has an address to reach `address` from. Sends nothing: connecting a UDP
    socket fails only for lack of a source address, because UDP has its own ports.
    """
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def reason(error: OSError) -> str:
    """An error in words, without addresses and numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error.strerror or error}"
    return (
        os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or "failed"
    )
