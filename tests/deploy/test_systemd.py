"""The units, as systemd itself reads and rates them."""

import configparser
from pathlib import Path

import pytest

from tests.deploy.options import VARIABLES
from tests.deploy.tools import DRAIN_TIMEOUT_S, END_S, ROOT, fails, run

FOLDER = ROOT / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
WORST_EXPOSURE = 2.0  # of 10; systemd calls what is below 4.5 "OK"


class Unit(configparser.RawConfigParser):
    """A unit file whose repeated settings count by their last."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False)
        self.read(path)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def by_name(path: Path) -> str:
    return path.name


def test_there_is_one_for_each_command() -> None:
    commands = {Unit(path)["Service"]["ExecStart"] for path in UNITS}
    assert commands == {
        f"/opt/qwen-serve/bin/qwen-serve {command}" for command in ("serve", "server", "engine")
    }


def with_a_program(path: Path, folder: Path) -> Path:
    """The unit with a program that is there: systemd looks whether it is."""
    copy = folder / path.name
    copy.write_text(path.read_text().replace("/opt/qwen-serve/bin/qwen-serve", "/bin/true"))
    return copy


@pytest.mark.parametrize("path", UNITS, ids=by_name)
def test_systemd_takes_it(path: Path, tmp_path: Path) -> None:
    assert run("systemd-analyze", "verify", "--man=no", with_a_program(path, tmp_path)) == ""


def test_systemd_would_say_something(tmp_path: Path) -> None:
    bad = with_a_program(FOLDER / "qwen-serve.service", tmp_path)
    bad.write_text(bad.read_text().replace("KillMode=mixed", "KillMode=mixxed"))
    command = ("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", bad)
    assert "mixxed" in run("sh", "-c", '"$@" 2>&1 || true', "-", *command)


@pytest.mark.parametrize("path", UNITS, ids=by_name)
def test_it_is_confined(path: Path) -> None:
    limit = f"--threshold={WORST_EXPOSURE * 10:.0f}"
    run("systemd-analyze", "security", "--offline=yes", limit, path)


def test_an_open_unit_would_be_found(tmp_path: Path) -> None:
    bad = tmp_path / "open.service"
    bad.write_text("[Service]\nExecStart=/bin/true\n")
    limit = f"--threshold={WORST_EXPOSURE * 10:.0f}"
    assert "UNSAFE" in fails("systemd-analyze", "security", "--offline=yes", limit, bad)


@pytest.mark.parametrize("path", UNITS, ids=by_name)
def test_it_drains(path: Path) -> None:
    service = Unit(path)["Service"]
    assert service["KillMode"] == "mixed"  # or the workers would be told to end, too
    assert int(service["TimeoutStopSec"].removesuffix("s")) > DRAIN_TIMEOUT_S + END_S
    assert service["Restart"] == "on-failure"


@pytest.mark.parametrize("path", [path for path in UNITS if "server" not in path.name], ids=by_name)
def test_torch_may_write_machine_code(path: Path) -> None:
    assert "MemoryDenyWriteExecute" not in Unit(path)["Service"]


def test_the_example_sets_options() -> None:
    lines = (FOLDER / "qwen-serve.env").read_text().splitlines()
    names = [
        line.lstrip("#").partition("=")[0] for line in lines if "=" in line and "= " not in line
    ]
    used = {name for name in names if name.startswith("QWEN_SERVE_")}
    assert {"QWEN_SERVE_MODEL", "QWEN_SERVE_QUEUE"} <= used
    assert used <= VARIABLES
