"""The relay: upstream bytes -> events -> interceptors -> downstream, for one response.

`step` defines `Relay`, `passing` and `events` implement it, `open_relay` chooses. `mover` waits for
what a relay needs, through the `hub` where there is one. `resume` continues a stream over several
connections, `heartbeat` keeps quiet ones alive, `loop` holds what the hub knows of Trio. Relays
import `upstream`, `downstream` and `dialects`; never `exchange` or `worker`.
"""

from __future__ import annotations

from interceptors.chain import StreamChain
from pools import BufferScope, Pools

from ..downstream import Writer
from ..hub import Need
from ..upstream import UpstreamBody
from .events import EventRelay
from .gaps import EventGaps
from .mover import Mover
from .passing import PassingRelay
from .resume import Resume
from .step import Observe, Relay

__all__ = ["EventGaps", "Mover", "Need", "Relay", "open_relay"]


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
    gaps: EventGaps | None = None,
    observe: Observe | None = None,
) -> Relay:
    """The relay of a body, after both heads are done. It owns nothing but the leases it borrows.

    `chain`: without one, or if none of its hooks sees events, bytes pass unparsed. `sse`: windows
    come from the pool for events. `wrote_before_body`: a heartbeat was sent before the body.
    `resume`: only whole events leave, without those the client already has, and `continue_with` may
    be called after the body has ended. `gaps`: where the times between events are counted.
    `observe` gets what the upstream sends, before any hook.
    """
    relay: Relay
    if resume is not None or (chain is not None and chain.wants_events):
        relay = EventRelay(body, writer, chain, pools, scope, sse=sse, resume=resume)
    else:
        relay = PassingRelay(body, writer, chain, pools, scope, sse=sse)
    relay.gaps = gaps
    if observe is not None:
        relay.observe(observe)
    if wrote_before_body:
        relay.note_own_write()
    return relay
