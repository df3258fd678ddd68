"""A resolver of host names without a network."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import trio

__all__ = ["Names"]


class Names(trio.abc.HostnameResolver):
    """Each name is loopback after so many seconds, or fails with that `socket.EAI_...`; others do
    not exist. Installs itself.
    """

    def __init__(self, **known: float) -> None:
        self.known = known
        self.asked: Counter[str] = Counter()
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked[name] += 1
        after_s = self.known.get(name, socket.EAI_NONAME)
        if isinstance(after_s, int) and after_s < 0:
            raise socket.gaierror(after_s, "Name or service not known")
        await trio.sleep(after_s)
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))
        return [found, found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError
