"""`weirpool new-interceptor NAME`, as a newcomer runs it: what it writes works as written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.process import Done, run_command

from proxy.commands.new_interceptor import new_interceptor
from proxy.errors import ConfigError

CONFIG = """
reverse_proxy:
  upstreams: [{name: llm, endpoints: ["http://127.0.0.1:9"]}]
  routes: [{path: /, upstream: llm, interceptors: [mark-all]}]
interceptors: [{name: mark-all, use: "./mark_all.py:MarkAll", options: {%s}}]
"""


def run(directory: Path, module: str, *arguments: str) -> Done | subprocess.CompletedProcess[str]:
    if module == "proxy":
        return run_command(*arguments, cwd=directory)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def test_what_it_writes_passes_its_own_test_and_types_and_loads(tmp_path: Path) -> None:
    """Its test passes; `weirpool check` loads it relative to the configuration's directory."""
    written = run(tmp_path, "proxy", "new-interceptor", "mark-all")
    assert (written.returncode, written.stderr) == (0, "")
    assert f"    {sys.executable} -m pytest test_mark_all.py\n" in written.stdout
    assert "    weirpool check weirpool.yaml\n" in written.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mark_all.py", "test_mark_all.py"]
    tested = run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "test_mark_all.py")
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "weirpool.yaml").write_text(CONFIG % 'value: "me"')
    checked = run(elsewhere, "proxy", "check", "../weirpool.yaml")
    assert checked.returncode == 0, checked.stderr
    (tmp_path / "weirpool.yaml").write_text(CONFIG % 'colour: "blue"')
    refused = run(elsewhere, "proxy", "check", "../weirpool.yaml")
    assert refused.returncode != 0
    assert "interceptors[0].options" in refused.stderr
    assert "colour" in refused.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((name, "cannot be a name") for name in ("", "Mark", "mark all", "../mark", "1mark", "mark-", "märk")),
        ("class", "'class' cannot be a name: it is a Python keyword; choose another, such as my-class"),
        ("there", "there.py exists"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused(name: str, problem: str, tmp_path: Path) -> None:
    """Nothing is written or overwritten."""
    (tmp_path / "there.py").write_text("mine")
    with pytest.raises(ConfigError, match=problem):
        new_interceptor(name, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("json", "Python's module json"), ("asyncio", "Python's module asyncio"),
        ("trio", "the installed module trio"), ("httpx", "the installed module httpx"),
        ("prometheus-client", "the installed module prometheus_client"),
        ("msgspec", "the installed module msgspec"),
        ("interceptors", "Weirpool's package interceptors"), ("pools", "Weirpool's package pools"),
        ("proxy", "Weirpool's package proxy"), ("pytest", "the installed module pytest"),
        ("event", "Weirpool's Event"), ("interceptor", "Weirpool's Interceptor"),
        ("stream-interceptor", "Weirpool's StreamInterceptor"), ("options", "Weirpool's Options"),
    ],
)  # fmt: skip
def test_a_name_that_hides_a_module_is_refused(name: str, hidden: str, tmp_path: Path) -> None:
    """The directory comes first for Python: `json.py` there would replace json everywhere."""
    with pytest.raises(
        ConfigError, match=f"would hide {hidden}; choose another, such as my-{name}"
    ):
        new_interceptor(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
    new_interceptor(f"my-{name}", tmp_path)


def test_a_file_of_ones_own_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_my_own.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="exists"):
        new_interceptor("of-my-own", tmp_path)


def test_the_command_refuses_it_in_one_line(tmp_path: Path) -> None:
    refused = run(tmp_path, "proxy", "new-interceptor", "json")
    assert (refused.returncode, refused.stderr.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
