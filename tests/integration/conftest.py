"""Fixtures of the tests on real sockets: certificates, and a proxy in each way of serving."""

from __future__ import annotations

import pytest
from support.certificates import Certificates
from support.interceptors import Log, Serve, Way


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["hub", "no hub", "TLS"])
def serve(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> Serve:
    """A proxy with the hub, without it, and with TLS, which the portable writer serves."""
    tls = certificates if request.param == "TLS" else None
    return Way(hub=request.param != "no hub", certificates=tls).serve(log, monkeypatch)


@pytest.fixture
def serve_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A proxy in the usual way, for what does not depend on it."""
    return Way().serve(log, monkeypatch)
