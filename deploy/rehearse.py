"""Carries the Dockerfile's steps out without Docker, and runs what they make as Docker would.

    python -m deploy.rehearse FOLDER --base ROOT [--build-arg TORCH=...] [--share PATH ...]

ROOT is a folder that stands for the image python:3.11-slim-bookworm:

    debootstrap --variant=minbase --include=ca-certificates,python3-pip,python3-venv bookworm ROOT

Each stage is a copy of its base's folder in which its steps run by chroot, word by word. The image
then runs with the user, environment, command and health check that the Dockerfile gives it, as
process 1, without capabilities, on a read-only root with a fresh /tmp and data volume: it must
become healthy, answer, survive its engine, leave no dead processes, and end well on SIGTERM.

Needs root and Debian's util-linux, as in CI; changes nothing outside FOLDER. What it prints is what
docs/deployment.md records.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.dockerfile import read_stages
from deploy.image import REPOSITORY, Builder, Image, contained, say

HEALTHY_S = 600.0
END_S = 60.0


class Container:
    """The image at work. `url` is the server's, without a path."""

    def __init__(self, image: Image, data: Path, port: int, process: subprocess.Popen[str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._image = image
        self._data = data
        self._port = port
        self._process = process

    @property
    def first(self) -> int:
        """Process 1, by its number outside."""
        return children(self._process.pid)[0]

    def is_healthy(self) -> bool:
        environment = {"QWEN_SERVE_PORT": str(self._port)}
        command = contained(
            self._image,
            self._image.healthcheck,
            [(self._data, "/data")],
            user=self._image.user,
            environment=environment,
            read_only=True,
        )
        return subprocess.run(command, capture_output=True).returncode == 0

    def wait_until_healthy(self) -> float:
        begun = time.monotonic()
        while not self.is_healthy():
            if self._process.poll() is not None:
                raise SystemExit(f"error: the container ended with {self._process.returncode}")
            if time.monotonic() - begun > HEALTHY_S:
                raise SystemExit("error: the container does not become healthy")
            time.sleep(0.5)
        return time.monotonic() - begun

    def stop(self) -> int:
        """SIGTERM to process 1; the exit status."""
        os.kill(self.first, signal.SIGTERM)
        return self._process.wait(END_S)


@contextmanager
def running(image: Image, data: Path, log: Path) -> Iterator[Container]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = contained(
        image,
        [*image.entrypoint, *image.command],
        [(data, "/data")],
        user=image.user,
        environment={"QWEN_SERVE_PORT": str(port), "QWEN_SERVE_HOST": "127.0.0.1"},
        read_only=True,
    )
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True)
    try:
        yield Container(image, data, port, process)
    finally:
        if process.poll() is None:
            for first in children(process.pid):
                os.kill(first, signal.SIGKILL)  # and with process 1 all that is inside
        process.kill()
        process.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def ask(url: str) -> dict[str, Any]:
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


def check(image: Image, data: Path, log: Path) -> None:
    """Everything that the image is for. Ends with an error where something is not so."""
    with running(image, data, log) as container:
        say(f"healthy after {container.wait_until_healthy():.1f} s")
        say(f"answer: {ask(container.url)['choices'][0]['message']['content']!r}")
        status = Path(f"/proc/{container.first}/status").read_text()
        lines = [
            line for line in status.splitlines() if line.startswith(("Uid", "CapEff", "NoNew"))
        ]
        say("process 1: " + command_of(container.first) + "; ".join(lines).replace("\t", " "))
        engines = [
            pid for pid in descendants(container.first) if "engine.process" in command_of(pid)
        ]
        os.kill(engines[0], signal.SIGKILL)
        time.sleep(1)
        say(f"engine killed; healthy again after {container.wait_until_healthy() + 1:.1f} s")
        ask(container.url)
        dead = [command_of(pid) for pid in descendants(container.first) if is_dead(pid)]
        if dead:
            raise SystemExit(f"error: processes that nobody waits for: {dead}")
        status_code = container.stop()
        say(f"exit status after SIGTERM: {status_code}")
        if status_code != 0:
            raise SystemExit(1)
    if "Traceback" in log.read_text():
        raise SystemExit(f"error: see {log}")


def size_mb(folder: Path) -> int:
    """Disk used, in MB, without what other file systems hold."""
    used = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1MB", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(used.stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--base", type=Path, required=True, help="stands for the Python image")
    parser.add_argument("--target", default="cpu", help="the stage")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--share", action="append", type=Path, default=[], help="seen by the steps, read by pip"
    )
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    folder.mkdir(parents=True)
    stages = read_stages(REPOSITORY / "Dockerfile")
    arguments = dict(word.split("=", 1) for word in given.build_arg)
    builder = Builder(folder, stages, given.base.resolve(), arguments, given.share)
    image = builder.build(given.target)
    sizes = {name: size_mb(folder / name) for name in ("python", "base", given.target)}
    say(f"MB: {sizes}")
    data = folder / "data"
    data.mkdir()
    os.chown(data, *map(int, image.user.split(":")))
    check(image, data, folder / "log")


if __name__ == "__main__":
    main()
