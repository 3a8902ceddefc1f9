"""loadtest/grid_plot.py draws what engine/bench_batched.py writes."""

import json
from pathlib import Path

import msgspec
import pytest

from loadtest.grid_plot import main


def test_a_picture(tmp_path: Path) -> None:
    grid = {
        "model": "/models/m.gguf",
        "engine": {"device": "cpu"},
        "step_ms": {
            "sequences": [1, 2, 4],
            "by_context": {"128": [3.0, 4.0, 6.5], "8192": [12.0, 22.0, None]},
        },
    }
    source, picture = tmp_path / "grid.json", tmp_path / "grid.png"
    source.write_text(json.dumps(grid))
    main([str(source), str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_another_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "grid.json"
    source.write_text('{"model": "m"}')
    with pytest.raises(msgspec.ValidationError):
        main([str(source), str(tmp_path / "grid.png")])
