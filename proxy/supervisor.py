"""`--workers N`: a small supervisor. N single-process servers on the same listening sockets, a dead one replaced.

The parent only waits and passes signals on. Each worker is in a process group of its own, so that a Ctrl-C at a terminal reaches
it once, through the parent; and each watches a pipe that the parent holds, so that none outlives it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import structlog

__all__ = ["run_workers"]

_LEAST_LIFE_S = 1.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def run_workers(count: int, run: Callable[[int], int]) -> int:
    """Keep `count` workers running until SIGTERM or SIGINT. `run(fd)` serves in the child and returns its exit status.

    Returns 0 when every worker ended well after the signal. A worker that dies is replaced, at most once a second each.
    """
    return _Supervisor(run).run(count)


class _Supervisor:
    def __init__(self, run: Callable[[int], int]) -> None:
        self._run = run
        self._log = structlog.get_logger("proxy")
        self._workers: dict[int, float] = {}  # process id -> when it started
        self._stopping = False
        self._read_end, self._write_end = os.pipe()

    def run(self, count: int) -> int:
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        for _ in range(count):
            self._start()
        worst = 0
        while self._workers:
            pid, status = os.wait()
            started = self._workers.pop(pid, None)
            if started is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                if -code not in _PASSED_ON:  # one that had not come as far as handling the signal died of it, which is well
                    worst = worst or abs(code)
                continue
            self._log.error("worker_died", pid=pid, exit_status=code)
            time.sleep(max(0.0, started + _LEAST_LIFE_S - time.monotonic()))
            self._start()
        return worst

    def _start(self) -> None:
        # Between fork and the end of the handlers' change a signal must not be taken for the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            if self._stopping:
                return
            pid = os.fork()
            if pid == 0:
                self._become_worker()
            self._workers[pid] = time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)

    def _become_worker(self) -> None:
        """Never returns."""
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(self._write_end)
            for number in _PASSED_ON:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
            status = self._run(self._read_end)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _pass_on(self, number: int, _: object) -> None:
        self._stopping = True
        for pid in self._workers:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
