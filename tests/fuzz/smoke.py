"""Both fuzzers for a while, with a bound on memory and on each input's time; fails when one of them
does.

    pip install -e '.[test,fuzz]' && python tests/fuzz/smoke.py [--seconds 60]

The seconds are shared by the targets. A crash leaves its input in a temporary directory that is
named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

__all__: list[str] = []

TARGETS = ("atheris_body.py", "atheris_events.py")
SEEDS = {
    "atheris_body.py": [
        b"\x02\x01\x05\x11\x40" + wire
        for wire in (
            b"5\r\nhello\r\n0\r\n\r\n",
            b"4;a=b\r\nabcd\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\n",
            b"ffffffffffffffff\r\nx",
            b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
        )
    ],
    "atheris_events.py": [
        b"\x01\x05\x11\x40" + wire
        for wire in (
            b"\xef\xbb\xbfdata: a\r\n\r\nid: 7\ndata\n\n",
            b"event: e\rdata: 1\rdata: 2\r\r: ping\n\nretry: 15\n\n",
            b"data: " + b"x" * 600,
        )
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    seconds = max(1, parser.parse_args().seconds // len(TARGETS))
    failed = 0
    for target in TARGETS:
        directory = Path(tempfile.mkdtemp(prefix="weirpool-fuzz-"))
        corpus = directory / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[target]):
            (corpus / str(number)).write_bytes(seed)
        limits = [
            "-timeout=10",
            "-rss_limit_mb=512",
            "-max_len=1024",
            f"-max_total_time={seconds}",
            "-print_final_stats=1",
        ]
        script = Path(__file__).with_name(target)
        done = subprocess.run(
            [sys.executable, script, *limits, f"-artifact_prefix={directory}/", corpus],
            capture_output=True,
            text=True,
        )
        runs = next(
            (line for line in done.stderr.splitlines() if "number_of_executed_units" in line),
            "no statistics",
        )
        print(f"{target}: exit {done.returncode}, {runs}")
        if done.returncode != 0:
            failed = 1
            print(done.stderr[-4000:])
            print(f"what failed it is in {directory}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
