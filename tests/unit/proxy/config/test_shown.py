"""The configuration as it is shown: no credential, whatever its form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.config import check_config, in_force, shown

CONFIG = """
reverse_proxy:
  upstreams:
    - name: up
      endpoints: ["https://host/base", "https://${HOST}/"]
      headers: {set: {authorization: "Bearer literal-1", x-plain: literal-2}}
  routes: [{path: /v1, upstream: up, interceptors: [own, keys]}, {path: "/${AB}", upstream: up}]
interceptors:
  - name: own
    use: ./own.py:Own
    options:
      api_key: literal-3
      nested: [{Password: literal-4, plain: kept-1}]
      tokens: 5
      keys: {ann: literal-5}
      url: "postgres://u:literal-6@db/x"
      text: "kept-2 ${SHORT:-} ${DEFAULT:-kept-3}"
      referenced: "x ${SECRET}"
      file: "${file:secret.txt}"
  - name: keys
    use: api_keys
    options: {keys: {ann: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, upstream: Bearer literal-10, upstream_header: x-kept-4}
store: {url: "valkey://u:literal-7@host", password: null}
admin: {port: 9000, token: literal-token-8-of-admin}
secret: literal-9-literal-9-literal-9-literal-9
"""
OWN = """
from interceptors import Interceptor
class Own(Interceptor):
    def __init__(self, **options): pass
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(
        OWN.replace("**options", "api_key, nested, tokens, keys, url, text, referenced, file")
    )
    (tmp_path / "secret.txt").write_text("from-a-file\n")
    for name, value in (("HOST", "secret.host"), ("AB", "ab"), ("SECRET", "from-the-environment")):
        monkeypatch.setenv(name, value)
    (tmp_path / "weirpool.yaml").write_text(CONFIG)
    return tmp_path / "weirpool.yaml"


def test_no_credential_is_shown(file: Path) -> None:
    config = check_config(file).require()
    tree = shown(config)
    text = json.dumps(tree)
    for secret in ("literal", "from-", "secret.host"):
        assert secret not in text
    for kept in (
        "kept-1",
        "kept-2",
        "kept-3",
        "kept-4",
        "/base",
        '"path": "/v1"',
        '"x-plain"',
        '"ann"',
    ):
        assert kept in text
    options = tree["interceptors"][0]["options"]
    assert (options["tokens"], options["url"]) == (5, "postgres://***@db/x")
    assert tree["reverse_proxy"]["upstreams"][0]["endpoints"] == ["https://host/base", "***"]
    assert tree["reverse_proxy"]["routes"][1]["path"] == "***"
    assert tree["reverse_proxy"]["timeouts"]["idle"] == 300  # with defaults
    assert (tree["store"]["url"], tree["store"]["password"]) == ("valkey://***@host", None)
    assert (tree["secret"], tree["admin"]["token"]) == ("***", "***")


def test_a_reloads_settings_are_those_in_force(file: Path) -> None:
    """Settings of the process stay those of its start, until it starts again."""
    before = check_config(file).require()
    file.write_text(
        CONFIG.replace("port: 9000", "port: 9001").replace("/v1", "/v2") + "log: {level: debug}\n"
    )
    after = shown(in_force(before, check_config(file).require()))
    assert after["admin"]["port"] == 9000
    assert after["reverse_proxy"]["routes"][0]["path"] == "/v2"
