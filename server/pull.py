"""Gets a model onto this machine: the embedded one, one of a hub, or a local path as it is.

`pull(name, data_dir)` is the one door, for the command line, `serve` and the tests. It owns the
names and the models/ folder; server/embedded_model.py, server/huggingface.py and
server/modelscope.py download.
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console

from server import embedded_model, huggingface, modelscope
from server.config import Source
from server.hub_files import is_complete
from server.pull_error import HubUnreachableError, PullError

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+\.gguf))?", re.ASCII)
_COMPLETE_MARK = ".qwen-serve.json"  # in a hub model's folder: which parts of it are all there
_WHOLE = "model"  # the part that is not one .gguf file


class _Hub(Protocol):
    """What each hub's module offers."""

    def fetch(
        self,
        repository: str,
        revision: str | None,
        gguf_file: str | None,
        folder: Path,
        console: Console,
    ) -> None: ...

    def find_cached(self, repository: str, revision: str | None, file: str) -> Path | None: ...


_HUBS: dict[Source, _Hub] = {"huggingface": huggingface, "modelscope": modelscope}


def pull(
    name: str,
    data_dir: Path,
    *,
    source: Source = "huggingface",
    revision: str | None = None,
    refresh: bool = False,
    console: Console | None = None,
) -> Path:
    """Return the local path of a model, after downloading whatever of it is missing.

    `name` is a local path, `smollm2`, `org/name`, or `org/name/file.gguf` for one file of a hub
    model. `refresh` asks the hub again about a model that is complete. Where the hub cannot be
    reached, a complete model in the cache of the hub's own tools is served from there. Raises
    PullError, also on a source or revision for what does not come from a hub.
    """
    console = console or Console(stderr=True)
    local = Path(name).expanduser()
    if local.exists():
        _refuse_hub_options(f"{name} is a local path", source, revision)
        return local
    if name.lower() in embedded_model.NAMES:
        _refuse_hub_options(f"{name} is the embedded model", source, revision)
        with _lock(data_dir, embedded_model.FILE_NAME, console) as models:
            return embedded_model.fetch(models, console)
    match = _HUB_NAME.fullmatch(name)
    if match is None or name.startswith((".", "/", "~")) or ".." in name.split("/"):
        raise PullError(
            f"there is no file or folder {name}, and it is not the name of a model; give a path, "
            f"{embedded_model.NAMES[0]} or a hub's org/name"
        )
    repository, gguf_file = match.groups()
    return _pull_from_hub(repository, gguf_file, data_dir, source, revision, refresh, console)


def default_name(model: str, path: Path) -> str:
    """What a model is called when no name is given: `model` as it was asked for, `path` on disk."""
    if path.name == embedded_model.FILE_NAME:
        return embedded_model.MODEL_NAME
    is_local = Path(model).expanduser().exists()
    return (path.resolve().name if is_local else model).removesuffix(".gguf")


def _pull_from_hub(
    repository: str,
    gguf_file: str | None,
    data_dir: Path,
    source: Source,
    revision: str | None,
    refresh: bool,
    console: Console,
) -> Path:
    # Another revision, hub or file is another model: it must not overwrite this one.
    folder_name = repository + (f"@{revision.replace('/', '--')}" if revision else "")
    if source != "huggingface":
        folder_name = f"{source}/{folder_name}"
    with _lock(data_dir, folder_name, console) as models:
        folder = models / folder_name
        target = folder / gguf_file if gguf_file else folder
        wanted = gguf_file or _WHOLE
        is_here = wanted in _complete_parts(folder)
        if is_here and not refresh:
            return target
        try:
            _HUBS[source].fetch(repository, revision, gguf_file, folder, console)
        except HubUnreachableError:
            cached = _find_cached(repository, gguf_file, source, revision)
            if is_here or cached is None:
                raise
            reason = f"{repository} could not be downloaded"
            console.print(f"{reason}; using {cached}", highlight=False, soft_wrap=True)
            return cached
        if not gguf_file and not is_complete(folder):
            raise PullError(f"{repository} has no config.json, or not all files of its weights")
        parts = sorted({*_complete_parts(folder), wanted})
        (folder / _COMPLETE_MARK).write_text(json.dumps({"complete": parts}), encoding="utf-8")
        return target


def _complete_parts(folder: Path) -> set[str]:
    mark = folder / _COMPLETE_MARK
    return set(json.loads(mark.read_text(encoding="utf-8"))["complete"]) if mark.exists() else set()


def _find_cached(
    repository: str, gguf_file: str | None, source: Source, revision: str | None
) -> Path | None:
    """A complete copy in the cache of the hub's own tools."""
    file = _HUBS[source].find_cached(repository, revision, gguf_file or "config.json")
    if file is None or gguf_file:
        return file
    return file.parent if is_complete(file.parent) else None


def _refuse_hub_options(reason: str, source: Source, revision: str | None) -> None:
    if revision is not None:
        raise PullError(f"{reason}, which has no --revision; leave it out")
    if source != "huggingface":
        raise PullError(f"{reason} and does not come from {source}; leave --source out")


@contextmanager
def _lock(data_dir: Path, name: str, console: Console) -> Iterator[Path]:
    """Hold the lock of one model (between processes) and yield the models/ folder."""
    models = data_dir / "models"
    path = models / ".locks" / (name.replace("/", "--") + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as exc:
        raise PullError(f"the folder {models} cannot be written: {exc.strerror or exc}") from exc
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another download of {name}", highlight=False)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield models
        except OSError as exc:  # a full disk, a folder that is not ours
            raise PullError(
                f"{name} could not be saved in {models}: {exc.strerror or exc}"
            ) from exc
