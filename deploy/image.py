"""Builds stages of a Dockerfile as folders, and runs commands in them as Docker would.

With root's rights and util-linux: a mount and a process namespace, chroot, and setpriv.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.dockerfile import Stage, Step, assignments

REPOSITORY = Path(__file__).parent.parent


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
                image.environment |= assignments(step.value)
            case "ARG":
                given = assignments(step.value)
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
    unshare = ["unshare", "--mount", "--pid", "--fork"]
    return [*unshare, "sh", "-c", "\n".join(lines)]


def say(line: str) -> None:
    print(line, flush=True)
