"""The benchmark of prefill and decode counts what the engine really made."""

import json
from pathlib import Path

import pytest

from engine import bench_batched
from engine.bench_batched import Cell, fill, step_s, tokens_per_s, work
from engine.config import EngineConfig
from engine.core import Engine
from engine.load import load_engine
from engine.model_runner import ModelRunner
from tests.engine import tiny_models


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    model = tiny_models.write(tiny_models.build("qwen2"), tmp_path / "model")
    return load_engine(
        EngineConfig(
            model=str(model), dtype="float32", kv_cache_memory_bytes=1 << 20, speculation="off"
        )
    )


def test_prefill_computes_the_whole_prompt(engine: Engine) -> None:
    for seed in range(2):  # nothing of the first helps the second
        assert tokens_per_s(engine, Cell(num_prompt_tokens=40, seed=seed)) > 0
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (80, 2)
    assert not engine.has_work


def test_decode_runs_all_streams_for_the_steps(engine: Engine) -> None:
    cell = Cell(num_prompt_tokens=8, num_streams=3, num_steps=5)
    assert tokens_per_s(engine, cell) > 0
    assert engine.stats().prompt_tokens == 24
    assert engine.stats().generation_tokens == 3 * (1 + 5)
    assert not engine.has_work
    assert tokens_per_s(engine, cell) > 0  # the names are free again


def test_a_decode_that_does_not_fit_is_an_error(engine: Engine) -> None:
    limit = engine.info.max_model_len
    with pytest.raises(RuntimeError, match="ended within the steps"):
        tokens_per_s(engine, Cell(num_prompt_tokens=8, num_streams=1, num_steps=limit))


def test_a_step_at_any_context_that_the_cache_holds(engine: Engine) -> None:
    assert isinstance(engine.runner, ModelRunner)
    fill(engine.runner.kv_cache)
    tensors = engine.runner.kv_cache.tensors()
    assert all((tensor != 0).float().mean() > 0.9 for tensor in tensors)
    seconds = step_s(engine, 2, 30)
    assert seconds is not None
    assert seconds > 0
    assert step_s(engine, 1, engine.info.max_model_len + 1) is None
    assert step_s(engine, 1 + engine.info.num_blocks, 16) is None


def test_a_worker_answers_line_by_line(engine: Engine) -> None:
    told: list[str] = []
    cells = [{"num_prompt_tokens": 8}, {"num_prompt_tokens": 8, "num_streams": 2, "num_steps": 2}]
    work(engine, map(json.dumps, cells), told.append)
    assert told[0] == 'result {"ready": true}'
    replies = [json.loads(line.removeprefix("result ")) for line in told[1:]]
    assert [list(reply) for reply in replies] == [["tokens_per_s"]] * 2


@pytest.mark.parametrize("options", [[], ["--grid"]])
def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    model = tiny_models.write(tiny_models.build("qwen2"), tmp_path / "model")
    small = ["--prefill", "9", "--streams", "2", "--prompt", "4", "--steps", "2", "--rounds", "2"]
    command = ["bench_batched", "--model", str(model), "--kv-cache-gib", "0.001", *small]
    monkeypatch.setattr("sys.argv", [*command, "--json", str(tmp_path / "out.json"), *options])
    bench_batched.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    if options:
        grid = figures["step_ms"]["by_context"]
        assert list(grid) == ["128", "512", "2048", "8192"]
        assert grid["8192"] == [None] * len(figures["step_ms"]["sequences"])
    else:
        assert {title: len(speeds) for title, speeds in figures["tokens_per_s"].items()} == {
            "prefill 9": 2,
            "decode 2 after 4": 2,
        }
        assert "decode 2 after 4" in capsys.readouterr().out
