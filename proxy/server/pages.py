"""The content of the admin pages: of one worker, or of all workers of `weirpool serve --workers N`.

The worker that gets the request asks the others for their parts and answers for all. One that does
not answer is reported; its counters are read from its memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import trio

from ..config import Config, in_force, shown
from ..version import installed_version
from ..worker.counters import State
from ..worker.families import Family, Sample, decode, encode, labelled, merge_each, render
from ..worker.metrics import families_in
from ..worker.worker import Worker
from .inspecting import Inspecting
from .status import routes_in, status_of
from .totals import Part, add_up, decode_part
from .watching import StatusStream

__all__ = ["Pages"]

_IN_TOTALS = ("exchanges", "limits", "budgets", "store", "recent", "window", "steps")
"""Keys of a worker's part that `workers` does not repeat."""

_PRIVATE = dict.fromkeys(("client", "path", "call", "request_id"))
"""What an exchange shows to operators only."""

_SILENT_S = 3.0
"""A worker whose event loop has not run for so long is not asked."""


class Pages:
    """The pages of a worker and its siblings."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        parts: dict[str, Callable[[], bytes]] = {
            "metrics": lambda: encode(worker.metrics.families()),
            "status": lambda: msgspec.msgpack.encode(status_of(worker)),
        }
        self._metrics = _Asking(worker, "metrics", decode)
        self._status = _Asking(worker, "status", decode_part)
        self._version = installed_version() or "(not installed)"
        self._started_with = worker.config
        self._shown: tuple[Config, dict[str, Any]] | None = None
        admin = worker.config.admin
        private = admin.port is not None
        self._shows_details = private or admin.token is not None
        self.stream = StatusStream(
            self.status_json,
            # On a port of their own, the pages show a drain to its end.
            lambda: worker.draining and not private,
        )
        self.inspecting: Inspecting | None = None
        if worker.inspector is not None:
            self.inspecting = Inspecting(
                worker.inspector, worker.siblings, lambda: worker.draining and not private
            )
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
        return "\n".join(["ok", *lines])

    async def metrics(self, accept: str, *, by_worker: bool) -> tuple[bytes, str]:
        """The metrics in the text format that an `Accept` header asks for, and its content type.
        `by_worker`: with the label `worker`, and nothing added up.

        Waits for the other workers, at most `siblings.PART_S`.
        """
        worker = self._worker
        if worker.siblings is None and not by_worker:
            return await _page_of(worker.metrics.each(), accept)
        answers = {**await self._metrics.parts(), worker.index: worker.metrics.families()}
        up = Family("weirpool_worker_up", "1: answers; 0: does not.", "gauge", "", "", [])
        parts = [[up]]
        for index, memory in enumerate(worker.memories):
            up.samples.append(Sample(up.name, {"worker": str(index)}, float(index in answers)))
            part = answers.get(index) or families_in(memory)
            parts.append(labelled(part, "worker", str(index)) if by_worker else part)
        return await _page_of(merge_each(parts), accept)

    async def status(self) -> dict[str, Any]:
        """The JSON of `/status`, as docs/status.md describes it.

        Waits as `metrics`.
        """
        worker = self._worker
        own = status_of(worker)
        parts = {**await self._status.parts(), worker.index: own}
        if not self._shows_details:
            parts = {index: _public(part) for index, part in parts.items()}
        parts = dict(sorted(parts.items()))
        problems = _problems(worker)
        workers: list[dict[str, Any]] = []
        silent = []
        for index, memory in enumerate(worker.memories):
            if index in parts:
                workers.append({"worker": index, **_without(parts[index], _IN_TOTALS)})
            else:
                workers.append({"worker": index, "problem": problems.get(index, "no answer")})
                silent.append(routes_in(memory))
        alone = {"pid": own["pid"], "generations": own["generations"]}
        return {
            "version": self._version,
            "now": round(time.time(), 3),
            "started_at": min(part["started_at"] for part in parts.values()),
            **(alone if worker.siblings is None else {}),
            **add_up(parts, silent),
            "reload": _last_reload([part["reload"] for part in parts.values()]),
            "workers": workers,
        }

    async def status_json(self) -> bytes:
        """As `status`, encoded."""
        return msgspec.json.encode(await self.status())

    def configuration(self) -> dict[str, Any] | None:
        """The configuration in force without credentials; None where everybody could read it."""
        if not self._shows_details:
            return None
        config = in_force(self._started_with, self._worker.config)
        if self._shown is None or self._shown[0] is not self._worker.config:
            self._shown = self._worker.config, shown(config)
        return self._shown[1]


def _without(part: Part, keys: Collection[str]) -> Part:
    return {key: value for key, value in part.items() if key not in keys}


def _public(part: Part) -> Part:
    """The part without what only operators may see."""
    exchanges, reload = part["exchanges"], part["reload"]
    return {
        **part,
        "exchanges": {
            **exchanges,
            "oldest": [{**item, **_PRIVATE} for item in exchanges["oldest"]],
        },
        "interceptors": [{**item, "use": None} for item in part["interceptors"]],
        "budgets": [],
        "reload": reload and {"at": reload["at"], "ok": reload["ok"]},
    }


def _last_reload(reloads: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The last result of all workers: a failure counts until the worker's next success."""
    found = [item for item in reloads if item is not None]
    failures = [item for item in found if not item["ok"]]
    return max(failures or found, key=lambda item: float(item["at"]), default=None)


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


async def _page_of(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """Render a page of metrics. Streams run between two families: all of them take many
    milliseconds.
    """
    pieces, content_type = render(families, accept)
    page = bytearray()
    for piece in pieces:
        page += piece
        await trio.lowlevel.checkpoint()
    return bytes(page), content_type


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
