"""The wheel holds all that serving needs: it is built, and served from away from the tree.

A part of what deploy/rehearse.py does: without the kernels, whose compilation takes minutes, and
with the packages that are installed here already.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from deploy.dockerfile import read_stages
from tests.deploy.tools import ROOT, run
from tests.e2e.real_server import real_server
from tests.e2e.running_server import MODEL


def copied() -> list[str]:
    """Files that Git tracks of what the Dockerfile copies."""
    steps = read_stages(ROOT / "Dockerfile")["wheel"].steps
    sources = [
        word for step in steps if step.instruction == "COPY" for word in step.value.split()[:-1]
    ]
    return run("git", "ls-files", *sources).splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in copied():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path)
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    # a compiler that always fails: kernels are optional
    run(*pip, "--wheel-dir", target, source, CC="false", CXX="false")
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen-serve in a virtual environment of its own, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q")
    run(*pip, "--no-deps", wheel)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "qwen-serve"


def test_every_file_that_is_not_python_is_in_it(wheel: Path) -> None:
    data = {name for name in copied() if "/" in name and not name.endswith((".py", ".md"))}
    assert "server/calibration.jsonl" in data
    assert data <= set(zipfile.ZipFile(wheel).namelist())


def test_nothing_else_is_in_it(wheel: Path) -> None:
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {
        *("engine", "protocol", "server", "loadtest"),
    }


@pytest.mark.real_model
def test_it_serves(program: Path, smollm2_path: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = program.with_name("python")
    where = subprocess.run(
        [python, "-P", "-c", "import server; print(server.__file__)"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(program.parent.parent)
    command = ("env", "-u", "PYTHONPATH", str(program))
    with real_server(tmp_path, smollm2_path, command=command) as server:
        body = {
            "model": MODEL,
            "prompt": "The capital of France is",
            "max_tokens": 4,
            "temperature": 0,
        }
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert reply.json()["usage"]["completion_tokens"] == 4
