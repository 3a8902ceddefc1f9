"""ModelScope: downloads a model's files, and finds one in the cache of its own tools.

The HTTP API is the one ModelScope's own client uses (modelscope/hub/api.py): a recursive file list
with sizes and sha256, and one URL for each file. MODELSCOPE_DOMAIN names another site and
MODELSCOPE_API_TOKEN is sent where set.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress

from server.embedded_model import progress_bar
from server.hub_files import choose_files
from server.pull_error import HubUnreachableError, PullError, one_line

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60.0


def fetch(
    repository: str, revision: str | None, gguf_file: str | None, folder: Path, console: Console
) -> None:
    """Bring `folder` up to date with a ModelScope repository.

    Raises PullError, and of its kinds HubUnreachableError without an answer.
    """
    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    endpoint = domain if "://" in domain else f"https://{domain}"
    base = f"{endpoint.rstrip('/')}/api/v1/models/{repository}/repo"
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    revision = revision or "master"
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S, headers=headers) as client,
            progress_bar(console) as progress,
        ):
            listing = client.get(
                f"{base}/files", params={"Revision": revision, "Recursive": "true"}
            )
            entries = _entries(listing, repository)
            for path in choose_files(repository, list(entries), gguf_file):
                _fetch_file(client, base, revision, entries[path], folder, progress)
    except httpx.HTTPError as exc:
        has_answer = isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code < 500
        kind = PullError if has_answer else HubUnreachableError
        raise kind(
            f"{repository} could not be downloaded from {endpoint}: {one_line(exc)}"
        ) from exc


def find_cached(repository: str, revision: str | None, file: str) -> Path | None:
    """A file of a model in ModelScope's own cache (MODELSCOPE_CACHE), beside the others.

    Its folders do not say of which revision they are, so that none answers for a revision.
    """
    if revision is not None:
        return None
    given = os.environ.get("MODELSCOPE_CACHE")
    root = Path(given) if given else Path.home() / ".cache" / "modelscope" / "hub"
    organisation, _, name = repository.partition("/")
    # Older clients leave "models" out, and all write a dot of a name as three underscores.
    for parent in (root / "models" / organisation, root / organisation):
        for folder in (parent / name, parent / name.replace(".", "___")):
            if (folder / file).exists():
                return folder / file
    return None


def _entries(listing: httpx.Response, repository: str) -> dict[str, Mapping[str, Any]]:
    """The files of the list by path: {"Path", "Size", "Sha256", "Type"} each."""
    if listing.status_code == 404:
        raise PullError(f"ModelScope has no model {repository} with that revision")
    listing.raise_for_status()
    try:
        entries = listing.json()["Data"]["Files"]
        return {str(entry["Path"]): entry for entry in entries if entry["Type"] != "tree"}
    except (ValueError, KeyError, TypeError) as exc:
        raise PullError(f"ModelScope's list of the files of {repository} is not readable") from exc


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
