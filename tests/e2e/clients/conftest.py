"""The servers that these tests share: two real ones, and one whose engine says what it is told."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.fake import FakeEngine, Script, echo_script
from protocol.tools.formats import ToolFormat
from server.config import ServerConfig
from server.tool_support import ToolSupport
from tests.e2e.real_server import RealServer, real_server
from tests.e2e.running_server import RunningServer, build_state, serve

CODER = "qwen-coder"  # 0.5B: calls a tool where it should; slow
SMOL = "smollm2"  # 135M: only for what a grammar promises; fast

Say = Callable[..., FakeEngine]


@pytest.fixture(scope="session")
def coder(qwen_coder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    options = ("--served-model-name", CODER, "--kv-cache-memory", "256MiB")
    with real_server(tmp_path_factory.mktemp("coder"), qwen_coder_path, *options) as running:
        yield running


@pytest.fixture(scope="session")
def smol(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    options = ("--served-model-name", SMOL, "--kv-cache-memory", "256MiB")
    with real_server(tmp_path_factory.mktemp("smol"), smollm2_path, *options) as running:
        yield running


@pytest.fixture(scope="session")
def hermes_server(smollm2_path: Path) -> Iterator[RunningServer]:
    """SmolLM2's prompts, in which its tools are taught in Hermes' format."""
    state = build_state(smollm2_path, FakeEngine(), ServerConfig())
    model = dataclasses.replace(state.model, tools=ToolSupport(ToolFormat.HERMES))
    with serve(dataclasses.replace(state, model=model)) as running:
        yield running


@pytest.fixture
def say(hermes_server: RunningServer) -> Say:
    """Make the engine answer the next requests with these texts, token for token."""
    engine, model = hermes_server.state.engine, hermes_server.state.model
    assert isinstance(engine, FakeEngine)
    eos = model.eos_token_ids

    def set_script(*texts: str) -> FakeEngine:
        ids = [model.tokenizer.encode(text, parse_special=True) for text in texts]
        scripts: Iterator[Script] = iter([echo_script(eos, [*one, eos[0]]) for one in ids])
        engine.script = lambda request: next(scripts)(request)
        engine.requests.clear()
        return engine

    return set_script
