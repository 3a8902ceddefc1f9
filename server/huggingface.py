"""The Hugging Face hub: downloads a model's files, and finds one in the cache of its own tools."""

import glob
import os
from pathlib import Path

from rich.console import Console

from server.hub_files import choose_files
from server.pull_error import HubUnreachableError, PullError, one_line


def fetch(
    repository: str, revision: str | None, gguf_file: str | None, folder: Path, console: Console
) -> None:
    """Bring `folder` up to date with a repository of the hub at HF_ENDPOINT.

    Raises PullError, and of its kinds HubUnreachableError without an answer or with
    HF_HUB_OFFLINE=1.
    """
    # Imported here: it takes 0.3 s, and serving a model that is on disk needs none of it.
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not console.is_terminal:
        disable_progress_bars()
    # The base of all errors of its HTTP library, which is httpx or httpx2 by version.
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        # The commit, so that what is listed is what comes.
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision)
        paths = [file.rfilename for file in info.siblings or ()]
        files = choose_files(repository, paths, gguf_file)
        snapshot_download(
            repository,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=[glob.escape(path) for path in files],
            endpoint=endpoint,
        )
    except errors.HfHubHTTPError as exc:
        kind = HubUnreachableError if exc.response.status_code >= 500 else PullError
        raise kind(f"{repository} could not be downloaded: {one_line(exc)}") from exc
    except (http_error, ConnectionError, errors.LocalEntryNotFoundError) as exc:
        cause = exc.__cause__ or exc
        raise HubUnreachableError(
            f"{repository} could not be downloaded: the hub cannot be reached "
            f"({one_line(cause)}); run `qwen-serve pull {repository}` where it can, "
            "or give --model a local path"
        ) from exc
    except ValueError as exc:  # a name that the hub could not have
        raise PullError(f"{repository} could not be downloaded: {one_line(exc)}") from exc


def find_cached(repository: str, revision: str | None, file: str) -> Path | None:
    """A file of a revision in the hub's own cache (HF_HOME, HF_HUB_CACHE), beside the others."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, revision=revision)
    return Path(path) if isinstance(path, str) else None
