"""Which files of a folder hold its weights: one, or the shards that an index names. No torch."""

import json
from pathlib import Path

from engine.errors import CheckpointError


def shard_paths(folder: Path, name: str, pattern: str) -> list[Path]:
    """Paths for weights called `name` where they are one file ("model.safetensors"), or where that
    is missing as well as an index, all that fit the glob `pattern`.

    Raises CheckpointError on an index that is not valid. A path may be of a file that is missing.
    """
    index = folder / f"{name}.index.json"
    if not index.exists():
        single = folder / name
        return [single] if single.exists() else sorted(folder.glob(pattern))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{index} is not a valid index of weight files.") from exc
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} names files outside its folder.")
    return [folder / name for name in names]
