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


HIDDEN = {
    "Python's module": ["json", "asyncio"],
    "the installed module": ["trio", "httpx", "prometheus-client", "msgspec", "pytest"],
    "Weirpool's package": ["interceptors", "pools", "proxy"],
    "Weirpool's ": ["Event", "Interceptor", "Stream-Interceptor", "Options"],
}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((name, "cannot be a name") for name in ("", "Mark", "mark all", "../mark", "1mark", "mark-", "märk")),
        ("class", "'class' cannot be a name: it is a Python keyword; choose another, such as my-class"),
        ("there", "there.py exists"),
        *((name.lower(), f"would hide {what}") for what, names in HIDDEN.items() for name in names),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused(name: str, problem: str, tmp_path: Path) -> None:
    """Nothing is written or overwritten. `json.py` there would replace Python's json everywhere."""
    (tmp_path / "there.py").write_text("mine")
    with pytest.raises(ConfigError, match=problem) as caught:
        new_interceptor(name, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"
    if "hide" in problem:
        assert str(caught.value).endswith(f"; choose another, such as my-{name}")
        new_interceptor(f"my-{name}", tmp_path)


def test_a_file_of_ones_own_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_my_own.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="exists"):
        new_interceptor("of-my-own", tmp_path)


def test_the_command_refuses_it_in_one_line(tmp_path: Path) -> None:
    refused = run(tmp_path, "proxy", "new-interceptor", "json")
    assert (refused.returncode, refused.stderr.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
