"""The benchmark of a step runs, and its parts add up."""

from pathlib import Path

import pytest

from engine.bench import measure
from engine.config import EngineConfig
from engine.load import load_engine
from engine.messages import SamplingParams
from tests.engine import tiny_models


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_the_parts_of_a_step_add_up(tmp_path: Path, num_sequences: int) -> None:
    model = tiny_models.write(tiny_models.build("qwen2"), tmp_path / "model")
    engine = load_engine(
        EngineConfig(
            model=str(model), dtype="float32", kv_cache_memory_bytes=1 << 20, speculation="off"
        )
    )
    for part in range(2):  # the clocks of the first are off again
        ms = measure(
            engine,
            f"ipc://{tmp_path}/queue{part}",
            num_sequences,
            num_steps=20,
            sampling=SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0),
        )
        assert set(ms) == {"step", "model", "sampler", "rest"}
        assert all(value > 0 for value in ms.values())
        assert max(ms["model"], ms["sampler"], ms["rest"]) < ms["step"]
        assert not engine.has_work
