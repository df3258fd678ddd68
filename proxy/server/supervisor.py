"""`--workers N`: a supervisor of N server processes on shared listening sockets.

The parent only waits, forwards signals and replaces dead workers. Each worker has its own process
group, so that a Ctrl-C reaches it once, through the parent; and it watches a pipe that the parent
holds, so that no worker outlives it. A replacement takes over the index of its predecessor.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from ..worker.counters import CounterMemory
from ..worker.log_level import CurrentLevel
from ..worker.logs import flush_log
from .local_store import LocalStore
from .notify import Reports
from .serve import HELD, SAME_SIGNAL_S, START_FAILED

__all__ = ["run_workers"]

_LEAST_LIFE_S = 1.0
_KILL_AFTER_S = 5.0
"""After the time in which a worker ends: what is left hangs."""
_KILL_SOON_S = 2.0
"""After a second signal."""
_STORE = -1  # in the place of a worker's index
_ENDING = (signal.SIGTERM, signal.SIGINT)
_HANDLED = (*_ENDING, *HELD, signal.SIGCHLD)


def run_workers(
    run: Callable[[int, int], int],
    reload: Callable[[], bool],
    memories: Sequence[CounterMemory],
    level: CurrentLevel,
    stop_s: Callable[[], float],
    store: LocalStore | None = None,
    reports: Reports | None = None,
) -> int:
    """Keep a worker for each of `memories` running until SIGTERM or SIGINT. `run(index, fd)` serves
    in the child and returns its exit status.

    On SIGHUP, `reload()` decides whether workers reload too; later workers start with its result.
    Returns 0 if every worker ended well after the signal. A dead worker is replaced, at most once a
    second for each index. If one of the first workers cannot start to serve (`START_FAILED`), all
    end, and that status is returned. `store`: a server that starts before them, is replaced in the
    same way, and ends after them. `reports`: to the service manager. `level`: of the log, which
    SIGUSR1 switches for all. `stop_s()`: the time in which a worker ends after the signal; one whose
    event loop is blocked does not, and is killed. The status is then 1.
    """
    return _Supervisor(run, reload, memories, level, stop_s, store, reports).run()


class _Supervisor:
    def __init__(
        self,
        run: Callable[[int, int], int],
        reload: Callable[[], bool],
        memories: Sequence[CounterMemory],
        level: CurrentLevel,
        stop_s: Callable[[], float],
        store: LocalStore | None,
        reports: Reports | None,
    ) -> None:
        self._level = level
        self._store = store
        self._reports = reports
        self._run = run
        self._reload = reload
        self._memories = memories
        self._log = structlog.get_logger("proxy")
        self._workers: dict[int, tuple[int, float]] = {}  # process id -> index, start time
        self._due: dict[int, float] = {}  # index -> time of its replacement
        self._replaced: set[int] = set()
        self._stopping = False
        self._stop_s = stop_s
        self._stopped_at = self._kill_at = math.inf
        self._worst = 0
        self._read_end, self._write_end = os.pipe()
        self._signals, self._signalled = os.pipe()

    def run(self) -> int:
        os.set_blocking(self._signalled, False)
        signal.set_wakeup_fd(self._signalled)
        for number in _HANDLED:
            signal.signal(
                number, _do_nothing
            )  # handlers only wake the loop, which then acts between two steps
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        try:
            return self._keep()
        finally:
            if self._store is not None:
                self._store.stop()

    def _keep(self) -> int:
        if self._store is not None:
            self._start(_STORE)
        for index in range(len(self._memories)):
            self._start(index)
        while self._workers or (self._due and not self._stopping):
            self._wait()
            if self._reports is not None:
                self._reports.step()
            if time.monotonic() >= self._kill_at:
                self._kill()
            for index in [index for index, at in self._due.items() if at <= time.monotonic()]:
                del self._due[index]
                self._start(index)
        return self._worst

    def _wait(self) -> None:
        """Wait for a signal, or for the time of a replacement, a report or a kill, and act on a
        signal.
        """
        times = [*self._due.values(), *([self._kill_at] if self._kill_at < math.inf else [])]
        waits_s = [max(0.0, at - time.monotonic()) for at in times]
        if self._reports is not None:
            waits_s.append(self._reports.next_s)
        ready, _, _ = select.select([self._signals], [], [], min(waits_s, default=None))
        if not ready:
            return
        for number in os.read(self._signals, 512):
            if number in _ENDING:
                self._stop(number)
            elif number == signal.SIGHUP and not self._stopping:
                self._reload_workers()
            elif number == signal.SIGUSR1:
                self._level.switch()
        self._reap()

    def _reload_workers(self) -> None:
        if self._reports is not None:
            self._reports.reloading()
        if self._reload():
            self._pass_on(signal.SIGHUP)
            return
        for memory in self._memories:
            memory.reloaded_at = time.monotonic()  # nothing is left to do

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if self._store is not None and pid == self._store.pid:
                self._due[_STORE] = self._store.ended(os.waitstatus_to_exitcode(status))
            index, started_at = self._workers.pop(pid, (None, 0.0))
            if index is not None:
                self._ended(index, pid, os.waitstatus_to_exitcode(status), started_at)

    def _ended(self, index: int, pid: int, code: int, started_at: float) -> None:
        self._memories[index].end()
        if self._stopping:
            if (
                -code not in _ENDING
            ):  # a worker that could not handle the signal yet died of it, as intended
                self._worst = self._worst or abs(code)
            return
        if code == START_FAILED and index not in self._replaced:
            self._worst = code
            self._stop(signal.SIGTERM)
            return
        self._memories[index].count_death()
        self._log.error("worker_died", pid=pid, exit_status=code)
        self._replaced.add(index)
        self._due[index] = max(time.monotonic(), started_at + _LEAST_LIFE_S)

    def _start(self, index: int) -> None:
        if self._stopping:
            return
        # Between fork and the change of handlers the child must not handle a signal as the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            if index == _STORE:
                assert self._store is not None
                self._store.start()
                return
            self._memories[index].reloaded_at = time.monotonic()  # it has the newest configuration
            pid = os.fork()
            if pid == 0:
                self._become_worker(index)
            self._workers[pid] = index, time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _become_worker(self, index: int) -> None:
        """Run a worker in the child. Never returns."""
        status = 1
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for fd in (self._write_end, self._signals, self._signalled):
                os.close(fd)
            for number in _HANDLED:
                signal.signal(
                    number,
                    signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                )
            # All but those that wait until the worker handles them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_HANDLED}.difference(HELD))
            status = self._run(index, self._read_end)
        except BaseException:
            self._log.critical("process_failed", exc_info=True)
        finally:
            flush_log()
            # Whatever fails here must not reach the code of the parent, such as the store's stop.
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(status)

    def _stop(self, number: int) -> None:
        now = time.monotonic()
        if not self._stopping:
            self._stopped_at, self._kill_at = now, now + self._stop_s() + _KILL_AFTER_S
        elif now > self._stopped_at + SAME_SIGNAL_S:
            self._kill_at = min(self._kill_at, now + _KILL_SOON_S)
        self._stopping = True
        for memory in self._memories:
            memory.stop()  # first: a probe must not find the group ready when one worker drains
        if self._reports is not None:
            self._reports.stopping()
        self._pass_on(number)

    def _kill(self) -> None:
        """End the workers that do not react: a hook blocks their event loops, or they are stopped."""
        self._kill_at = math.inf
        self._worst = self._worst or 1
        for pid in self._workers:
            self._log.error("worker_killed", pid=pid)
        self._pass_on(signal.SIGKILL)

    def _pass_on(self, number: int) -> None:
        for pid in self._workers:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _do_nothing(number: int, _: object) -> None:
    return
