"""The commands as users run them: processes, signals, exit statuses, what they print."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import trio
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from support.client import fetch, open_client
from support.process import (
    HYPERCORN,
    ROOT,
    WEIRPOOL,
    Done,
    free_port,
    port_in,
    port_of,
    run_command,
    running,
    serve,
)
from support.upstream import Peer, open_upstream, stream_of

from proxy.errors import ConfigError
from proxy.server.listen import Tls


def run(tmp_path: Path, text: str, *arguments: str) -> Done:
    """A command with `weirpool.yaml`, in its directory."""
    (tmp_path / "weirpool.yaml").write_text(text)
    return run_command(*arguments, "weirpool.yaml", cwd=tmp_path, env={"CHECK_KEY": "s3cr3t-value"})


def test_check_names_every_mistake_with_its_path(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
reverse_proxy:
  upstreams: [{name: llm, endpoints: ["ftp://x"]}]
  routes:
    - {path: /, upstream: lmm}
interceptors: [{name: x, use: "no.such:Thing"}]
""",
        "check",
    )
    assert done.returncode == 2
    assert (
        'weirpool.yaml:5:27: error: reverse_proxy.routes[0].upstream: no upstream has the name "lmm"'
        in done.stderr
    )
    assert "reverse_proxy.upstreams[0].endpoints[0]: " in done.stderr
    assert "Traceback" not in done.stderr


IDLE = {"sse_event": 0, "http_response": 0, "json": 0}
"""Buffers in use, by pool."""


async def test_serve_upstream_and_drain_on_sigterm() -> None:
    """`serve --upstream`: it names what it serves; on SIGTERM a live stream may end by itself, then
    the status is 0.
    """
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await go_on.wait()
        await peer.chunk(b"data: 2\n\n")
        await peer.end()

    async with open_upstream(script) as upstream:
        async with running(serve("--upstream", upstream.url)) as process:
            (started,) = await process.event("started")
            assert started["writer"] == "direct"
            assert isinstance(started["max_streams_by_open_files"], int)
            client = await open_client(port_in(started))
            await client.send("GET", "/")
            answer = await client.head()
            await client.read_until(answer, b"data: 1\n\n")
            process.signal(signal.SIGTERM)
            await process.event("drain")
            go_on.set()
            assert (await client.rest(answer)).complete
            assert answer.body == b"data: 1\n\ndata: 2\n\n"
            assert await process.exit_status() == 0
            await client.aclose()
            (exchange,) = await process.event("exchange")
            assert exchange["outcome"] == "completed"
            reports = await process.event("buffer_pool_report", 3)
            assert {line["pool"]: line["in_use"] for line in reports} == IDLE


async def test_workers_share_a_socket_and_a_dead_one_is_replaced() -> None:
    """Two workers; one is killed and replaced; one SIGTERM ends all of them with status 0."""
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        async with running(serve("--upstream", upstream.url, "--workers", "2")) as process:
            first, second = await process.event("started", 2)
            assert first["bind"] == second["bind"]
            assert first["pid"] != second["pid"]
            os.kill(int(str(first["pid"])), signal.SIGKILL)
            *_, third = await process.event("started", 3)
            (died,) = await process.event("worker_died")
            assert died["pid"] == first["pid"]
            for _ in range(10):
                assert (await fetch(port_in(first))).body == b"data: x\n\n"
            await process.stop()
            for pid in (second["pid"], third["pid"]):
                assert not Path(f"/proc/{pid}").exists()
            assert len(await process.event("drain", 2)) == 2  # once for each worker


async def test_workers_end_when_their_supervisor_is_killed() -> None:
    """No worker outlives a killed supervisor."""
    command = serve("--upstream", "http://127.0.0.1:9", "--workers", "2")
    async with running(command) as process:
        started = await process.event("started", 2)
        process.signal(signal.SIGKILL)
        await process.event("drain", 2)
        with trio.fail_after(10):
            for line in started:
                while Path(f"/proc/{line['pid']}").exists():
                    await trio.sleep(0.02)


async def test_plain_hypercorn(tmp_path: Path) -> None:
    """`WEIRPOOL_CONFIG=FILE hypercorn --worker-class trio "proxy:create_app()"` streams, and opens
    the admin port.
    """
    file, port, admin = tmp_path / "weirpool.yaml", free_port(), free_port()
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        file.write_text(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /, upstream: up}}]
reporting: {{interval: 0.05}}
admin: {{port: {admin}}}
"""
        )
        command = [*HYPERCORN, "--bind", f"127.0.0.1:{port}"]
        async with running(command, env={"WEIRPOOL_CONFIG": str(file)}) as process:
            await process.event("buffer_pool_report", 3)
            answer = await fetch(port)
            assert answer.body == b"data: x\n\n"
            assert answer.complete
            assert len(answer.all("date")) == 1
            assert (await fetch(admin, "/readyz")).body == b"ready\n"
            lines = await process.event("buffer_pool_report", 9)
            fields = {
                "pool", "reuse_rate", "allocations", "reuses", "discards", "in_use", "current_size",
                "high_water",
            }  # fmt: skip
            assert all(fields <= set(line) for line in lines)
            await process.stop()


def test_the_demo_prints_a_redacted_stream() -> None:
    """`weirpool demo --once`."""
    text = run_command("demo", "--once", "--port", "0").stdout
    assert "A weir lets the river run" in text
    assert "[redacted]" in text
    assert "sk-demo" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["serve", "--upstream", "nonsense"],
            "weirpool: --upstream: 'nonsense' is not an http:// or https:// URL: did you mean \"http://nonsense\"?",
        ),
        (
            ["serve", "--upstream", "http://x", "--bind", "nowhere"],
            "weirpool: --bind: 'nowhere' is not HOST:PORT, such as 127.0.0.1:8000 or [::]:8000",
        ),
        (["serve", "--config", "/no/such/file"], "/no/such/file: error: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run_command(*arguments)
    assert done.returncode == 2
    assert done.stderr == f"{message}\n"


async def test_many_streams_through_one_worker() -> None:
    """400 at once: each gets every event, none fails, and afterwards everything is back."""
    streams, events = 400, [b"data: %d\n\n" % number for number in range(5)]
    all_there = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        if upstream.open == streams:
            all_there.set()
        await all_there.wait()
        for event in events:
            await peer.chunk(event)
            await trio.sleep(0.05)
        await peer.end()

    bodies: list[bytes] = []

    async def one(port: int) -> None:
        answer = await fetch(port)
        assert answer.complete
        bodies.append(answer.body)

    async with open_upstream(script) as upstream:
        async with running(serve("--upstream", upstream.url)) as process:
            port = await port_of(process)
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(streams):
                        nursery.start_soon(one, port)
            assert bodies == [b"".join(events)] * streams
            status = json.loads((await fetch(port, "/status")).body)
            assert {pool["pool"]: pool["in_use"] for pool in status["pools"]} == IDLE
            assert len(await process.event("exchange", streams)) == streams


WARNED = """
reverse_proxy:
  upstreams: [{name: llm, endpoints: ["http://127.0.0.1:1"], headers: {set: {x-key: "${CHECK_KEY:-none}"}}}]
  routes: [{path: /, upstream: llm, interceptors: [r]}]
interceptors:
  - {name: r, use: redact, options: {patterns: [a]}}
"""


def test_check_warns_and_fails_for_a_warning_only_when_asked(tmp_path: Path) -> None:
    """Status 0 with the warning on stderr; `--strict`: status 2."""
    line = "weirpool.yaml:4:12: warning: reverse_proxy.routes[0]: without a dialect, the request's path decides"
    done = run(tmp_path, WARNED, "check")
    assert (done.returncode, done.stdout) == (0, "weirpool.yaml: ok (1 route, 1 warning)\n")
    assert done.stderr.startswith(line)
    done = run(tmp_path, WARNED, "check", "--strict")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.endswith("weirpool.yaml: 1 warning\n")


def test_check_gives_json_for_editors(tmp_path: Path) -> None:
    """The documented form, on stdout alone; the value is as written in the file."""
    text = WARNED.replace("path: /", 'path: "${CHECK_KEY}"').replace("[r]", "[r, s]")
    done = run(tmp_path, text, "check", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert "s3cr3t" not in done.stdout
    result = json.loads(done.stdout)
    assert (result["file"], result["ok"]) == ("weirpool.yaml", False)
    warning, path, name = sorted(result["problems"], key=lambda item: item["severity"] == "error")
    assert path == {
        "path": "reverse_proxy.routes[0].path",
        "line": 4,
        "column": 19,
        "value": '"${CHECK_KEY}"',
        "message": 'must start with "/"',
        "hint": 'did you mean "/${CHECK_KEY}"?',
        "severity": "error",
    }
    assert (warning["path"], warning["value"]) == ("reverse_proxy.routes[0]", None)
    assert warning["severity"] == "warning"
    assert name["message"] == 'no interceptor has the name "s"'
    done = run(tmp_path, WARNED, "check", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    done = run(tmp_path, "a: [", "check", "--json")
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["path"], problem["line"], problem["column"]) == ("", 1, 5)


async def test_every_way_to_start_tells_the_same_mistakes(tmp_path: Path) -> None:
    """`check`, `serve` and plain Hypercorn: all of them, and not the first."""
    text = WARNED.replace("path: /", "path: v1").replace("[a]}", '["("], x: 1}')
    checked = run(tmp_path, text, "check")
    served = run(tmp_path, text, "serve", "--config")
    assert checked.returncode == served.returncode == 2
    mistakes = [line for line in checked.stderr.splitlines() if ": error: " in line]
    assert len(mistakes) == 3
    assert served.stderr.splitlines() == mistakes
    command = [*HYPERCORN, "--bind", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WEIRPOOL_CONFIG": "weirpool.yaml"}
    done = await trio.run_process(
        command, capture_stderr=True, check=False, cwd=tmp_path, env=environment
    )
    for line in mistakes:
        assert line.partition(": error: ")[2].encode() in done.stderr


async def test_a_warning_is_logged_at_the_start_and_a_file_is_read_again(tmp_path: Path) -> None:
    """`config_warning` at the start and at each reload."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        request = await peer.request()
        seen.extend(request.all("x-key"))
        await peer.start_stream()
        await peer.end()

    async with open_upstream(script) as upstream:
        (tmp_path / "key").write_text("one\n")
        text = WARNED.replace("http://127.0.0.1:1", upstream.url).replace(
            "${CHECK_KEY:-none}", "${file:key}"
        )
        (tmp_path / "weirpool.yaml").write_text(text)
        command = serve("--config", str(tmp_path / "weirpool.yaml"))
        async with running(command) as process:
            port = await port_of(process)
            (warning,) = await process.event("config_warning")
            assert (warning["level"], warning["path"]) == ("warning", "reverse_proxy.routes[0]")
            await fetch(port)
            (tmp_path / "key").write_text("two\n")
            process.signal(signal.SIGHUP)
            (line,) = await process.event("reload")
            assert line["changed"] == ["reverse_proxy.upstreams[0].headers.set.x-key"]
            await process.event("config_warning", 2)
            await fetch(port)
            (tmp_path / "key").unlink()
            process.signal(signal.SIGHUP)
            _, line = await process.event("reload", 2)
            assert line["ok"] is False
            assert "cannot be read: No such file or directory" in str(line["errors"])
            await fetch(port)
            await process.stop()
    assert seen == [b"one", b"two", b"two"]


def test_new_key_makes_a_key_that_the_configuration_takes(tmp_path: Path) -> None:
    """The key once, and the line for the configuration; each time another key; a name that YAML
    would misread is in quotes.
    """
    keys = set()
    for name in ("ann", "no", "12", "a: b", "Zoë's"):
        done = run_command("new-key", name)
        key, line = done.stdout.splitlines()
        assert re.fullmatch(r"wp_[A-Za-z0-9]{43}", key)
        assert yaml.safe_load(line) == {name: f"sha256:{sha256(key.encode()).hexdigest()}"}
        assert key not in done.stderr
        keys.add(key)
    assert len(keys) == 5
    for name in ("", " ", "a\nb", "${A}"):
        done = run_command("new-key", name)
        assert (done.returncode, done.stdout) == (2, "")


def test_the_error_of_a_certificate_or_key_has_the_reason(tmp_path: Path) -> None:
    """Each in one line that names the option and the file, without a prompt for a pass phrase."""
    authority = trustme.CA()
    one, two = authority.issue_cert("a.example"), authority.issue_cert("b.example")
    (tmp_path / "cert.pem").write_bytes(one.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(one.private_key_pem.bytes())
    (tmp_path / "other.pem").write_bytes(two.private_key_pem.bytes())
    key = serialization.load_pem_private_key(one.private_key_pem.bytes(), None)
    secret = serialization.BestAvailableEncryption(b"pass")
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "encrypted.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, secret)
    )
    (tmp_path / "junk.pem").write_text("junk")
    cases = {
        ("cert.pem", "other.pem"): "the key is not that of the certificate",
        ("cert.pem", "encrypted.pem"): "--keyfile {}/encrypted.pem: the private key is encrypted",
        ("junk.pem", "key.pem"): "--certfile {}/junk.pem: there is no certificate in PEM",
        ("cert.pem", "junk.pem"): "--keyfile {}/junk.pem: there is no private key in PEM",
        ("cert.pem", "none.pem"): "--keyfile {}/none.pem: No such file or directory",
        ("key.pem", "cert.pem"): "--certfile {}/key.pem: there is no certificate in PEM",
    }
    for (certificate, private_key), message in cases.items():
        with pytest.raises(ConfigError) as caught:
            Tls(str(tmp_path / certificate), str(tmp_path / private_key)).check()
        (error,) = caught.value.errors
        assert message.format(tmp_path) in error
    Tls(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")).check()


def test_what_cannot_be_printed_is_one_line_and_status_1(tmp_path: Path) -> None:
    """`weirpool check --json | head` and a full disk."""
    (tmp_path / "weirpool.yaml").write_text("a: 1")
    with open("/dev/full", "w") as full:
        command = [*WEIRPOOL, "check", "--json", str(tmp_path / "weirpool.yaml")]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    message = "weirpool: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
