"""The relay: upstream bytes -> events -> interceptors -> downstream, for one response.

Two kinds with one interface, the choice between them, and the mover, which waits for what they
need.
"""

from __future__ import annotations

from interceptors.chain import StreamChain
from pools import BufferScope, Pools

from ..downstream import Writer
from ..upstream import UpstreamBody
from .events import EventRelay
from .mover import Mover
from .passing import PassingRelay
from .resume import Resume
from .step import Need, Relay

__all__ = ["Mover", "Need", "Relay", "open_relay"]


def open_relay(
    body: UpstreamBody,
    writer: Writer,
    chain: StreamChain | None,
    pools: Pools,
    scope: BufferScope,
    *,
    sse: bool,
    wrote_before_body: bool = False,
    resume: Resume | None = None,
) -> Relay:
    """The relay of a body, when both heads are done; it takes nothing over but the leases it
    borrows.

    `chain`: without one, or when none of its hooks sees events, bytes pass unparsed. `sse`: windows
    come from the pool for events. `wrote_before_body`: a comment has left already, before the first byte of
    the body. `resume`: only whole events leave, without those that the client has had already; when
    the body has ended, `continue_with` may be called.
    """
    relay: Relay
    if resume is not None or (chain is not None and chain.wants_events):
        relay = EventRelay(body, writer, chain, pools, scope, sse=sse, resume=resume)
    else:
        relay = PassingRelay(body, writer, chain, pools, scope, sse=sse)
    if wrote_before_body:
        relay.note_own_write()
    return relay
