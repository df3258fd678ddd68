"""What holds for every test: when it is over, each buffer pool that it made has everything back.
Leak detection is paranoid.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Generator, Iterator
from logging import DEBUG, INFO
from typing import Any

import pytest
import structlog
from hypothesis import settings
from support import byte_code

from pools import BufferPool, LeakDetector
from pools.buffers import Lease
from proxy.worker.logs import output
from proxy.worker.stderr import release_stderr

# On a busy machine an example can take longer than the 200 ms that Hypothesis allows by default.
settings.register_profile("weirpool", deadline=None)
settings.load_profile("weirpool")

byte_code.keep()
atexit.register(gc.unfreeze)  # so that Python ends as usual

TOGETHER = {
    "test_npm_mcp_clients.py": "npm",
    "test_surface.py": "type checkers",
    "test_against_strict_server.py": "strict server",
}
for _name in ("endings", "error_dialects", "held_calls", "llm_sdks", "sdk_leaving", "zoo"):
    TOGETHER[f"test_{_name}.py"] = "LLM SDKs"
"""What these files use is expensive: `--dist loadgroup` runs those of a group on one worker."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, which would search everything again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        byte_code.forget_temporary()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(TOGETHER[item.path.name]))


@pytest.fixture(autouse=True)
def every_buffer_comes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a pool still has a lease out. `@pytest.mark.leaks` is for tests that
    lose one on purpose.
    """
    _made.clear()
    yield
    if not _made or request.node.get_closest_marker("leaks"):
        return
    if any(pool.statistics().in_use for pool in _made):
        gc.collect()  # what is lost in a cycle shows as lost, and not only as not given back
    for pool in _made:
        stats = pool.statistics()
        assert stats.in_use == 0, (
            f"{stats.in_use} leases of {pool.name!r} were not given back{_taken_at(pool)}"
        )
        assert stats.leaks == 0, f"{stats.leaks} leases of {pool.name!r} were lost"


@pytest.fixture(autouse=True)
def logging_starts_afresh() -> Iterator[None]:
    """An app configures logging for its process; a test must not inherit that of another."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    release_stderr()


_made: list[BufferPool] = []
"""The pools of the running test."""
_init_pool = BufferPool.__init__


def _init(self: BufferPool, *args: Any, **kwargs: Any) -> None:
    _init_pool(self, *args, **kwargs)
    _made.append(self)


BufferPool.__init__ = _init  # type: ignore[method-assign]
LeakDetector.__init__.__defaults__ = ("paranoid",)  # where a test does not choose


def _taken_at(pool: BufferPool) -> str:
    """Where the leases that are still on loan were taken."""
    leases = [
        item
        for item in gc.get_objects()
        if type(item) is Lease and item.pool is pool and not item.returned
    ]
    return "".join(f"; taken at:\n{lease._origin}" for lease in leases)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The log lines of the test, although the app configures logging for itself."""
    lines: list[dict[str, object]] = []

    def keep(_: object, __: str, line: dict[str, object]) -> None:
        lines.append(dict(line))
        raise structlog.DropEvent

    def configure(_: object, level: str) -> None:
        structlog.configure(processors=[keep], wrapper_class=structlog.BoundLogger)
        monkeypatch.setattr(output, "level", DEBUG if level == "debug" else INFO)

    monkeypatch.setattr("proxy.server.app.configure_logging", configure)
    monkeypatch.setattr(output, "put", lambda line: lines.append(dict(line)))
    return lines
