"""Carries the Dockerfile's steps out without Docker, and runs what they make as Docker would.

    python deploy/rehearse.py FOLDER --base ROOT [--build-arg TORCH=...] [--share PATH ...]

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
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parent.parent
HEALTHY_S = 600.0
END_S = 60.0

_FLAG = re.compile(r"--([\w-]+)=(\S+)\s+")
_RUNTIME_ONLY = frozenset(("LABEL", "VOLUME", "EXPOSE", "COMMENT"))


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a stage: `flags` are its leading --name=value, in order."""

    instruction: str
    value: str
    flags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Image:
    """A stage that was built: its folder, and how Docker would start it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)  # of its steps only
    workdir: str = "/"
    user: str = "0:0"
    shell: Sequence[str] = ("/bin/sh", "-c")
    healthcheck: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()


def read_stages(dockerfile: Path) -> dict[str, Stage]:
    """The stages by name, in the order of the file (which must be called Dockerfile)."""
    arguments: dict[str, str] = {}
    stages: dict[str, tuple[str, list[Step]]] = {}
    steps: list[Step] | None = None
    for line in DockerfileParser(str(dockerfile)).structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            base, _, name = string.Template(value).substitute(arguments).split()
            steps = []
            stages[name] = (base, steps)
        elif instruction == "ARG" and steps is None:
            arguments.update(_assignments(value))
        elif instruction not in _RUNTIME_ONLY and steps is not None:
            steps.append(_step(instruction, value))
    return {name: Stage(name, base, tuple(steps)) for name, (base, steps) in stages.items()}


def _step(instruction: str, value: str) -> Step:
    flags = []
    while match := _FLAG.match(value):
        flags.append((match[1], match[2]))
        value = value[match.end() :]
    return Step(instruction, value, tuple(flags))


def _assignments(value: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(value))


class Builder:
    """Builds stages below `folder`, each once."""

    def __init__(
        self,
        folder: Path,
        stages: Mapping[str, Stage],
        base: Path,
        arguments: Mapping[str, str],
        shared: Sequence[Path],
    ) -> None:
        self._folder = folder
        self._stages = stages
        self._base = base
        self._arguments = arguments
        self._shared = shared
        self._images: dict[str, Image] = {}

    def build(self, name: str) -> Image:
        if name not in self._images:
            self._images[name] = self._build(self._stages[name])
        return self._images[name]

    def _build(self, stage: Stage) -> Image:
        parent = self.build(stage.base) if stage.base in self._stages else self._python_image()
        root = self._folder / stage.name
        subprocess.run(["cp", "--archive", "--reflink=auto", parent.root, root], check=True)
        image = Image(
            root,
            dict(parent.environment),
            workdir=parent.workdir,
            healthcheck=parent.healthcheck,
            entrypoint=parent.entrypoint,
            command=parent.command,
        )
        for step in stage.steps:
            self._apply(step, image)
        return image

    def _python_image(self) -> Image:
        """ROOT, made to look as the official image does: `python` and `pip` for everyone."""
        root = self._folder / "python"
        if not root.exists():
            subprocess.run(["cp", "--archive", "--reflink=auto", self._base, root], check=True)
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                mark.unlink()
        return Image(root)

    def _apply(self, step: Step, image: Image) -> None:
        say(f"{image.root.name}: {step.instruction} {' '.join(step.value.split())}")
        match step.instruction:
            case "ENV":
                image.environment |= _assignments(step.value)
            case "ARG":
                given = _assignments(step.value)
                image.environment |= {
                    name: self._arguments.get(name, given[name]) for name in given
                }
            case "WORKDIR":
                image.workdir = step.value
                (image.root / step.value.lstrip("/")).mkdir(exist_ok=True)
            case "USER":
                image.user = step.value
            case "SHELL":
                image.shell = json.loads(step.value)
            case "COPY":
                self._copy(step.value.split(), image)
            case "RUN":
                self._run(step, image)
            case "HEALTHCHECK":
                image.healthcheck = json.loads(step.value.removeprefix("CMD "))
            case "ENTRYPOINT":
                image.entrypoint = json.loads(step.value)
            case "CMD":
                image.command = json.loads(step.value)
            case _:
                raise SystemExit(f"error: no way to rehearse {step.instruction}")

    def _copy(self, words: Sequence[str], image: Image) -> None:
        """From what Git tracks, so that nothing which was built here gets in."""
        *sources, target = words
        into = image.root / image.workdir.lstrip("/") / ("" if target == "./" else target)
        for source in sources:
            listed = subprocess.run(
                ["git", "ls-files", "-z", source],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            names = [name for name in listed.split("\0") if name]
            if not names:
                raise SystemExit(f"error: nothing to copy of {source}")
            for name in names:
                path = into / (Path(name).relative_to(source) if name != source else Path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, path)

    def _run(self, step: Step, image: Image) -> None:
        binds = [(path, str(path)) for path in self._shared]
        for flag, value in step.flags:
            if flag != "mount":
                raise SystemExit(f"error: no way to rehearse RUN --{flag}")
            options = dict(part.split("=", 1) for part in value.split(","))
            if options["type"] == "cache":
                source = self._folder / "cache" / options["target"].strip("/").replace("/", "-")
                source.mkdir(parents=True, exist_ok=True)
            else:
                source = self.build(options["from"]).root / options["source"].lstrip("/")
            binds.append((source, options["target"]))
        command = [*image.shell, step.value]
        subprocess.run(
            contained(image, command, binds, environment=image.arguments, pass_on=True), check=True
        )


def contained(
    image: Image,
    command: Sequence[str],
    binds: Sequence[tuple[Path, str]],
    *,
    user: str = "0:0",
    environment: Mapping[str, str] | None = None,
    read_only: bool = False,
    pass_on: bool = False,
) -> list[str]:
    """The command line that runs `command` in the image as process 1.

    `pass_on` lets pip's settings and the certificates of this machine through, for steps that
    download.
    """
    root = shlex.quote(str(image.root))
    lines = ["set -eu", f"mount --bind {root} {root}"]
    for source, target in binds:
        inside = shlex.quote(f"{image.root}{target}")
        make = f"mkdir -p {inside}" if source.is_dir() else f"install -D /dev/null {inside}"
        lines += [f"[ -e {inside} ] || {make}", f"mount --bind {shlex.quote(str(source))} {inside}"]
    lines.append(f"mount --bind /etc/resolv.conf {root}/etc/resolv.conf")
    if read_only:
        lines += [f"mount -o remount,bind,ro {root}", f"mount -t tmpfs none {root}/tmp"]
    lines += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    variables = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    if pass_on:
        keep = ("PIP_", "SSL_", "DEBIAN_")
        variables |= {name: os.environ[name] for name in os.environ if name.startswith(keep)}
    variables |= image.environment | dict(environment or {})
    uid, gid = user.split(":")
    rights = ["--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"]
    rights += ["--bounding-set=-all", "--inh-caps=-all"] if read_only else []
    inner = ["setpriv", *rights, "env", "-i", "-C", image.workdir]
    inner += [f"{name}={value}" for name, value in variables.items()]
    lines.append(f"exec chroot {root} {shlex.join([*inner, *command])}")
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*unshare, "sh", "-c", "\n".join(lines)]


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
        process.kill()  # and, by --kill-child, all that is inside
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
        say(f"healthy again after {container.wait_until_healthy() + 1:.1f} s without its engine")
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


def say(line: str) -> None:
    print(line, flush=True)


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
