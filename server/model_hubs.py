"""Downloads the files of one model from the Hugging Face hub or from ModelScope into a folder.

Only files that describe a model or hold its weights are taken: never code, never pickles. Knows
nothing about names or what is complete (server/pull.py).
"""

import fnmatch
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from server.embedded_model import progress_bar
from server.pull_error import PullError

FILE_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
)
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0


def fetch_huggingface(
    repository: str, revision: str | None, gguf_file: str | None, folder: Path, console: Console
) -> None:
    """Bring `folder` up to date with a repository of the hub at HF_ENDPOINT. Raises PullError."""
    # Imported here: it takes 0.3 s, and serving a model that is on disk needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not console.is_terminal:
        disable_progress_bars()
    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            allow_patterns=[gguf_file] if gguf_file else list(FILE_PATTERNS),
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except HfHubHTTPError as exc:
        raise PullError(f"{repository} could not be downloaded: {_one_line(exc)}") from exc
    except (LocalEntryNotFoundError, ValueError) as exc:
        cause = exc.__cause__ or exc
        raise PullError(
            f"{repository} could not be downloaded: the hub cannot be reached "
            f"({_one_line(cause)}); run `qwen-serve pull {repository}` where it can, "
            "or give --model a local path"
        ) from exc


def fetch_modelscope(
    repository: str, revision: str | None, gguf_file: str | None, folder: Path, console: Console
) -> None:
    """Bring `folder` up to date with a ModelScope repository. Raises PullError.

    The HTTP API is the one ModelScope's own client uses (modelscope/hub/api.py): a recursive file
    list with sizes and sha256, and one URL for each file. MODELSCOPE_DOMAIN names another site and
    MODELSCOPE_API_TOKEN is sent where set.
    """
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    endpoint = domain if "://" in domain else f"https://{domain}"
    base = f"{endpoint.rstrip('/')}/api/v1/models/{repository}/repo"
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    revision = revision or "master"
    patterns = (gguf_file,) if gguf_file else FILE_PATTERNS
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S, headers=headers) as client,
            progress_bar(console) as progress,
        ):
            listing = client.get(
                f"{base}/files", params={"Revision": revision, "Recursive": "true"}
            )
            for entry in _files_of(listing, repository, patterns):
                _fetch_file(client, base, revision, entry, folder, progress)
    except httpx.HTTPError as exc:
        raise PullError(
            f"{repository} could not be downloaded from {endpoint}: {_one_line(exc)}"
        ) from exc


def _files_of(
    listing: httpx.Response, repository: str, patterns: tuple[str, ...]
) -> list[Mapping[str, Any]]:
    """The wanted entries of the file list: {"Path", "Size", "Sha256", "Type"} each."""
    if listing.status_code == 404:
        raise PullError(f"ModelScope has no model {repository} with that revision")
    listing.raise_for_status()
    try:
        entries = listing.json()["Data"]["Files"]
        files = [entry for entry in entries if entry["Type"] != "tree"]
        return [entry for entry in files if _is_wanted(entry["Path"], patterns)]
    except (ValueError, KeyError, TypeError) as exc:
        raise PullError(f"ModelScope's list of the files of {repository} is not readable") from exc


def _is_wanted(path: str, patterns: tuple[str, ...]) -> bool:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise PullError(f"ModelScope lists a file outside the model's folder: {path}")
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _fetch_file(
    client: httpx.Client,
    base: str,
    revision: str,
    entry: Mapping[str, Any],
    folder: Path,
    progress: Progress,
) -> None:
    path, size = str(entry["Path"]), int(entry["Size"])
    target = folder / path
    expected = entry.get("Sha256") or None
    if target.exists() and target.stat().st_size == size and _sha256(target) == expected:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    task = progress.add_task(path, total=size)
    digest = hashlib.sha256()
    params = {"Revision": revision, "FilePath": path}
    with client.stream("GET", base, params=params) as response, partial.open("wb") as out:
        response.raise_for_status()
        for data in response.iter_bytes(_CHUNK_BYTES):
            digest.update(data)
            out.write(data)
            progress.advance(task, len(data))
    if partial.stat().st_size != size or (expected and digest.hexdigest() != expected):
        partial.unlink()
        raise PullError(f"{path} arrived damaged (wrong size or sha256); it was thrown away")
    os.replace(partial, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(exc: BaseException) -> str:
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0].rstrip(".")
