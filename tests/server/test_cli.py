"""server/cli.py: exit statuses, one-line errors and what reaches the supervisor."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import cli, tracing
from server.config import ServeConfig
from server.options import OPTIONS


@pytest.fixture
def runner(tmp_path: Path) -> CliRunner:
    return CliRunner(env={"QWEN_SERVE_DATA_DIR": str(tmp_path / "data")})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeConfig]:
    """What `serve` would have been called with."""
    configs: list[ServeConfig] = []

    def supervise(config: ServeConfig, listener: socket.socket, *, has_engine: bool) -> int:
        assert has_engine
        listener.close()
        configs.append(config)
        return 0

    monkeypatch.setattr(cli, "supervise", supervise)
    return configs


def test_help_lists_every_option(runner: CliRunner) -> None:
    result = runner.invoke(cli.app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in OPTIONS:
        assert option.flag in result.output
        assert f"[default: {option.default_text}]" in " ".join(result.output.split())


def test_version(runner: CliRunner) -> None:
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, "qwen-serve 0.1.0\n")


def test_flags_reach_the_supervisor(
    runner: CliRunner, served: list[ServeConfig], tmp_path: Path
) -> None:
    model = tmp_path / "tiny.gguf"
    model.touch()
    flags = ["--model", str(model), "--port", "0", "--kv-cache-memory", "1GiB"]
    flags += ["--api-key", "k1", "--api-key", "k2", "--no-enable-prefix-caching"]
    result = runner.invoke(cli.app, ["serve", *flags])
    assert result.exit_code == 0, result.output
    (config,) = served
    assert config.engine.model == str(model)
    assert config.engine.kv_cache_memory_bytes == 2**30
    assert not config.engine.enable_prefix_caching
    assert config.server.api_keys == ("k1", "k2")
    assert config.server.served_model_names == ("tiny",)
    assert config.data_dir == str(tmp_path / "data")


@pytest.mark.parametrize("half", ["server", "engine"])
def test_a_half_is_supervised_alone(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    given: list[tuple[str | None, bool, bool]] = []

    def supervise(config: ServeConfig, listener: socket.socket | None, *, has_engine: bool) -> int:
        given.append((config.server.queue, listener is not None, has_engine))
        return 0

    monkeypatch.setattr(cli, "supervise", supervise)
    model = tmp_path / "tiny.gguf"
    model.touch()
    flags = ["--model", str(model), "--port", "0", "--queue", "redis://localhost:6379/0"]
    result = runner.invoke(cli.app, [half, *flags])
    assert result.exit_code == 0, result.output
    assert given == [("redis://localhost:6379/0", half == "server", half == "engine")]


def test_serve_takes_the_model_from_the_hub_and_revision_that_are_asked_for(
    runner: CliRunner, served: list[ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def fake_pull(name: str, data_dir: Path, **options: object) -> Path:
        asked.append({"name": name, **options})
        return tmp_path

    monkeypatch.setattr(cli, "pull", fake_pull)
    for flags in ([], ["--source", "modelscope", "--revision", "v1"]):
        result = runner.invoke(cli.app, ["serve", "--model", "org/name", "--port", "0", *flags])
        assert result.exit_code == 0, result.output
    assert asked == [
        {"name": "org/name", "source": "huggingface", "revision": None},
        {"name": "org/name", "source": "modelscope", "revision": "v1"},
    ]
    assert [config.server.served_model_names for config in served] == [("org/name",)] * 2


def test_a_draft_model_is_taken_from_the_hub_or_from_disk(
    runner: CliRunner, served: list[ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    def fake_pull(name: str, data_dir: Path, **options: object) -> Path:
        asked.append((name, options["source"]))
        return tmp_path / name.replace("/", "-")

    monkeypatch.setattr(cli, "pull", fake_pull)
    for draft_model in ("org/small", str(tmp_path)):
        flags = ["--source", "modelscope", "--draft-model", draft_model, "--port", "0"]
        result = runner.invoke(cli.app, ["serve", "--model", "org/large", *flags])
        assert result.exit_code == 0, result.output
    assert asked == [
        *(("org/large", "modelscope"), ("org/small", "modelscope")),
        *(("org/large", "modelscope"), (str(tmp_path), "huggingface")),
    ]
    assert served[0].engine.draft_model == str(tmp_path / "org-small")


def test_a_given_name_replaces_the_models_own(
    runner: CliRunner, served: list[ServeConfig], tmp_path: Path
) -> None:
    flags = ["--model", str(tmp_path), "--port", "0"]
    result = runner.invoke(
        cli.app, ["serve", *flags, "--served-model-name", "a", "--served-model-name", "b"]
    )
    assert result.exit_code == 0
    assert served[0].server.served_model_names == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--port", "x"], ("port", "'x'", "--port")),
        (["serve", "--prot", "1"], ("--prot",)),
        (["pull", "--source", "ftp"], ("'ftp'", "--source", "modelscope")),
    ],
)
def test_a_bad_option_exits_2_and_names_it(
    runner: CliRunner, arguments: list[str], words: tuple[str, ...]
) -> None:
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words), result.stderr


def test_traces_without_what_sends_them_are_refused_in_one_line(
    runner: CliRunner, served: list[ServeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_EXPORTER_MODULE", "opentelemetry.nowhere.exporter")
    result = runner.invoke(cli.app, ["serve", "--otlp-endpoint", "http://127.0.0.1:4318"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --otlp-endpoint asks for traces")
    assert served == []


def test_a_port_in_use_is_found_before_anything_is_loaded(
    runner: CliRunner, served: list[ServeConfig]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runner.invoke(cli.app, ["serve", "--model", "/missing", "--port", str(port)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: port {port} on 127.0.0.1 is in use by another program; choose one with --port\n"
    )
    assert not served


def test_a_missing_model_is_one_line(runner: CliRunner, served: list[ServeConfig]) -> None:
    result = runner.invoke(cli.app, ["serve", "--model", "/missing.gguf", "--port", "0"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no file or folder /missing.gguf")
    assert result.stderr.count("\n") == 1
    assert not served


def test_pull_prints_the_path(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(cli.app, ["pull", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}\n")


def test_the_command_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import server.cli; print('ok')"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_SERVE_")}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "ok\n"
