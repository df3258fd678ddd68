"""The content of the admin pages: of one worker, or of all workers of `weirpool serve --workers N`.

The worker that gets the request asks the others for their parts and answers for all. One that does
not answer is reported; its counters are read from its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import trio

from ..worker.counters import State
from ..worker.families import Family, Sample, decode, encode, labelled, merge, render
from ..worker.live import MOST_LISTED, describe_live
from ..worker.metrics import families_in
from ..worker.worker import Worker

__all__ = ["Pages"]

_SILENT_S = 3.0
"""A worker whose event loop has not run for so long is not asked."""


class Pages:
    """The pages of a worker and its siblings."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        parts: dict[str, Callable[[], bytes]] = {
            "metrics": lambda: encode(worker.metrics.families()),
            "status": lambda: msgspec.msgpack.encode(_status_of(worker)),
        }
        self._metrics = _Asking(worker, "metrics", decode)
        self._status: _Asking[dict[str, Any]] = _Asking(worker, "status", msgspec.msgpack.decode)
        if worker.siblings is not None:
            worker.siblings.part_of = lambda page: parts[page]()

    def ready(self) -> bool:
        """Whether every worker has started, one accepts exchanges, and they are not being ended."""
        memories = self._worker.memories
        states = {memory.state for memory in memories}
        stopping = any(memory.stopping for memory in memories)
        return not stopping and State.READY in states and State.STARTING not in states

    def health(self) -> str:
        """`ok`, and a line for each worker that cannot be asked."""
        problems = _problems(self._worker)
        lines = [f"worker {index}: {problem}" for index, problem in problems.items()]
        return "\n".join(["ok", *lines, ""])

    async def metrics(self, *, by_worker: bool) -> bytes:
        """The Prometheus text format. `by_worker`: with the label `worker`, and nothing added up.

        Waits for the other workers, at most `siblings.PART_S`.
        """
        worker = self._worker
        if worker.siblings is None and not by_worker:
            return worker.metrics.render()
        answers = {**await self._metrics.parts(), worker.index: worker.metrics.families()}
        up = Family("weirpool_worker_up", "1: answers; 0: does not.", "gauge", "", "", [])
        parts = [[up]]
        for index, memory in enumerate(worker.memories):
            up.samples.append(Sample(up.name, {"worker": str(index)}, float(index in answers)))
            part = answers.get(index) or families_in(memory)
            parts.append(labelled(part, "worker", str(index)) if by_worker else part)
        return render(merge(parts))

    async def status(self) -> dict[str, Any]:
        """The JSON of `/status`: `_status_of` for a worker that is alone. For several:

        - `draining` (one of them drains), `streams` (of all)
        - `exchanges` as of one worker, each with its `worker`
        - `workers`: of each `worker` (its number) and the rest of its `_status_of`; `problem`
          instead if it does not answer

        Waits as `metrics`.
        """
        worker = self._worker
        own = _status_of(worker)
        if worker.siblings is None:
            return own
        answers = {**await self._status.parts(), worker.index: own}
        problems = _problems(worker)
        workers: list[dict[str, Any]] = []
        exchanges: list[dict[str, Any]] = []
        for index in range(len(worker.memories)):
            answer = dict(answers.get(index, {"problem": problems.get(index, "no answer")}))
            listed = answer.pop("exchanges", {"oldest": ()})["oldest"]
            exchanges += [{"worker": index, **item} for item in listed]
            workers.append({"worker": index, **answer})
        exchanges.sort(key=lambda item: -item["age"])
        return {
            "draining": any(item["draining"] for item in answers.values()),
            "streams": sum(item["streams"] for item in answers.values()),
            "exchanges": {
                "total": sum(item["exchanges"]["total"] for item in answers.values()),
                "oldest": exchanges[:MOST_LISTED],
            },
            "workers": workers,
        }


def _problems(worker: Worker) -> dict[int, str]:
    """The other workers that cannot be asked, by index, and why."""
    problems = {}
    for index, memory in enumerate(worker.memories):
        if index == worker.index:
            continue
        if memory.state in (State.STARTING, State.GONE):
            problems[index] = "is starting"
        elif memory.silent_s > _SILENT_S:
            problems[index] = f"has not answered for {memory.silent_s:.0f} s"
    return problems


_Part = TypeVar("_Part")


class _Asking(Generic[_Part]):
    """Asks the other workers for their parts of a page, once at a time: clients decide how often a
    page is requested.
    """

    def __init__(self, worker: Worker, page: str, decode: Callable[[bytes], _Part]) -> None:
        self._worker = worker
        self._page = page
        self._decode = decode
        self._lock = trio.Lock()
        self._begun = self._done = 0
        self._parts: dict[int, _Part] = {}

    async def parts(self) -> dict[int, _Part]:
        """The parts of the workers that answer, asked for after this call began. Do not change
        them: calls share them.
        """
        worker = self._worker
        if worker.siblings is None:
            return {}
        asked_before = self._begun
        async with self._lock:
            if self._done <= asked_before:
                self._begun = number = self._begun + 1
                others = set(range(len(worker.memories))) - {worker.index, *_problems(worker)}
                self._parts = {}
                for index, data in (await worker.siblings.parts(self._page, others)).items():
                    try:
                        self._parts[index] = self._decode(data)
                    except msgspec.ValidationError:
                        raise
                    except msgspec.DecodeError:
                        continue  # cut: the worker has ended
                self._done = number
            return self._parts


def _status_of(worker: Worker) -> dict[str, Any]:
    """The JSON of `/status` of a worker that is alone.

    - `pid`, `draining`, `streams` (open exchanges), `generations` (configurations in use)
    - `exchanges`: `total`, and in `oldest` at most 1,000 of them, oldest first: `route`, `client`
      (an address, or null), `phase` (`proxy.exchange.context.Phase`), `age` in seconds, body
      `bytes` handed to the client, and `events` that interceptors saw (null without any)
    - `pools`: `pool`, `in_use`, `current_size`, `reuse_rate`
    - `upstreams` by name: `endpoints` with `endpoint`, `state`, `outstanding`, and `connections`
      with `origin`, `lent`, `idle`, `waiting`
    """
    return {
        "pid": os.getpid(),
        "draining": worker.draining,
        "streams": len(worker.live),
        "generations": len(worker.generations),
        "exchanges": describe_live(worker.live),
        "pools": [
            {
                "pool": item.pool,
                "in_use": item.in_use,
                "current_size": item.current_size,
                "reuse_rate": item.reuse_rate,
            }
            for item in worker.pools.statistics()
        ],
        "upstreams": {
            name: {
                "endpoints": [
                    {
                        "endpoint": item.endpoint,
                        "state": item.state,
                        "outstanding": item.outstanding,
                    }
                    for item in transport.endpoint_states()
                ],
                "connections": [
                    {
                        "origin": item.origin,
                        "lent": item.lent,
                        "idle": item.idle,
                        "waiting": item.waiting,
                    }
                    for item in transport.statistics()
                ],
            }
            for name, transport in worker.routes.transports.items()
        },
    }
