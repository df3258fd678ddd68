"""A certificate authority of the tests' own, and one certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

__all__ = ["Certificates"]


class Certificates:
    """`files` (certificate, key) and `ca_file` for configurations, `server` and `client` contexts."""

    def __init__(self, directory: Path, name: str = "localhost") -> None:
        self._authority = trustme.CA()
        issued = self._authority.issue_cert(name)
        self.files = (str(directory / "cert.pem"), str(directory / "key.pem"))
        issued.private_key_and_cert_chain_pem.write_to_path(self.files[0])
        issued.private_key_pem.write_to_path(self.files[1])
        self.ca_file = str(directory / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(self.server)

    def client(self, *protocols: str) -> ssl.SSLContext:
        """A client's context that offers these protocols (ALPN)."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(protocols or ["http/1.1"])
        self._authority.configure_trust(context)
        return context
