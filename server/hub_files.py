"""Which files of a hub's repository make a model, and whether a folder has all of them.

Only files that describe a model or hold its weights are taken, from the top of the repository:
never code, no training state, no second copy of the weights in another format. Knows nothing about
how files come here (server/huggingface.py, server/modelscope.py).
"""

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from server.pull_error import PullError

DESCRIPTIONS = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
)
# The first of these that a repository has is taken. Pickles come last: they are only read by
# torch's restricted reader, and most repositories have the same weights as safetensors too.
_WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def choose_files(repository: str, paths: Sequence[str], gguf_file: str | None) -> list[str]:
    """What to download of a repository that holds `paths`; `gguf_file` alone where it is given.

    Raises PullError where that would not be a model, and on a path that leaves the folder.
    """
    for path in paths:
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise PullError(f"{repository} lists a file outside the model's folder: {path}")
    if gguf_file is not None:
        if _GGUF_PART.search(gguf_file):
            raise PullError(f"{gguf_file} is one part of a split GGUF model; only whole ones load")
        if gguf_file not in paths:
            raise PullError(f"{repository} has no file {gguf_file}")
        return [gguf_file]
    top = [path for path in paths if "/" not in path]
    for pattern in _WEIGHTS:
        weights = [path for path in top if fnmatchcase(path, pattern)]
        if weights:
            break
    else:
        raise PullError(_lacks_weights(repository, paths))
    described = [path for path in top if any(fnmatchcase(path, known) for known in DESCRIPTIONS)]
    return sorted({*weights, *described})


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config and weights, all shards that an index names included."""
    if not (folder / "config.json").exists():
        return False
    for index in (folder / name for name in _INDEXES):
        if index.exists():
            return _has_shards(index)
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _has_shards(index: Path) -> bool:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((index.parent / name).exists() for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # half of a file: it was still on its way


def _lacks_weights(repository: str, paths: Sequence[str]) -> str:
    whole = [path for path in paths if path.endswith(".gguf") and not _GGUF_PART.search(path)]
    example = min(whole, default="FILE.gguf")
    return (
        f"{repository} has neither .safetensors nor pytorch_model*.bin files; of a GGUF repository "
        f"name one file, as in {repository}/{example}"
    )
