"""`python -m proxy.healthcheck`: is the `weirpool serve` on this machine ready? For containers.

Takes the options of `serve` and requests `/readyz` on `admin.port` or on the main port, with
`admin.prefix`. It reads only the `admin` section, which a reload does not change: a mistake
elsewhere must not make a running process unhealthy. It imports no server module, to start fast.

Exit status: 0 ready, 1 not ready or not reachable, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import http.client
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .config.expand import Expansion, expand

__all__ = ["main"]

_TIMEOUT_S = 2.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


def main(argv: Sequence[str] | None = None) -> int:
    """Request the page. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m proxy.healthcheck", description="Whether a weirpool is ready."
    )
    parser.add_argument("--config", metavar="FILE", help="as of serve")
    parser.add_argument(
        "--bind", metavar="HOST:PORT", default="127.0.0.1:8000", help="as of serve; of several, one"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="as of serve; not used")
    parser.add_argument("--tls", action="store_true", help="serve has --certfile")
    arguments = parser.parse_args(argv)
    try:
        admin = _read_admin(arguments.config)
        host, colon, port = arguments.bind.rpartition(":")
        tls = arguments.tls
        has_admin_port = admin.get("port") not in (None, "null")
        if arguments.bind == "systemd":
            if not has_admin_port:
                raise ValueError(
                    "--bind systemd: give the address of the socket, or set admin.port"
                )
        elif not colon or not port.isdigit():
            raise ValueError(f"--bind: {arguments.bind!r} is not HOST:PORT")
        if has_admin_port:
            host, port, tls = str(admin.get("host", "127.0.0.1")), str(int(admin["port"])), False
    except (OSError, ValueError, yaml.YAMLError) as error:
        sys.stderr.write(f"healthcheck: {error}\n")
        return 2
    path = f"{admin.get('prefix', '')}/readyz"
    problem = _ask(host.strip("[]"), int(port), path, tls=tls)
    if problem:
        sys.stderr.write(f"healthcheck: {problem}\n")
    return 1 if problem else 0


def _read_admin(file: str | None) -> dict[str, Any]:
    """Return the file's `admin` section with references replaced. Raises `ValueError`."""
    if file is None:
        return {}
    with open(file, encoding="utf-8") as stream:
        tree = yaml.safe_load(stream)
    admin = tree.get("admin") if isinstance(tree, dict) else None
    if not isinstance(admin, dict):
        return {}
    expansion = Expansion(Path(file).parent)
    values: dict[str, Any] = expand(admin, expansion, "admin")
    if expansion.mistakes:
        raise ValueError(", ".join(f"{item.path}: {item.message}" for item in expansion.mistakes))
    return values


def _ask(host: str, port: int, path: str, *, tls: bool) -> str | None:
    """Return the problem, or None. Certificates are not verified: the request does not leave the
    machine.
    """
    host = _EVERYWHERE.get(host, host)
    where = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}{path}"
    connection = (
        http.client.HTTPSConnection(
            host,
            port,
            timeout=_TIMEOUT_S,
            context=ssl._create_unverified_context(),  # noqa: S323 - see above
        )
        if tls
        else http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    )
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{where}: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if status == 200 else f"{where}: {status}"


if __name__ == "__main__":
    sys.exit(main())
