"""A real server with a fake engine that speaks SmolLM2's tokens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.fake import FakeEngine, echo_script
from server.config import ServerConfig
from tests.e2e.running_server import RunningServer, build_state, serve

API_KEY = "sk-right"
ANSWER = "The café costs 3 €. 你好, 世界! 👩‍💻 This is a long enough answer for every test."


@pytest.fixture(scope="session")
def fake_server(smollm2_path: Path) -> Iterator[RunningServer]:
    with serve(build_state(smollm2_path, FakeEngine(), ServerConfig())) as running:
        yield running


@pytest.fixture(scope="session")
def keyed_server(smollm2_path: Path) -> Iterator[RunningServer]:
    config = ServerConfig(api_keys=(API_KEY,))
    with serve(build_state(smollm2_path, FakeEngine(), config)) as running:
        yield running


@pytest.fixture
def fake_engine(fake_server: RunningServer) -> FakeEngine:
    """The engine behind `fake_server`, with no records and saying ANSWER to everything."""
    engine, model = fake_server.state.engine, fake_server.state.model
    assert isinstance(engine, FakeEngine)
    answer = model.tokenizer.encode(ANSWER, parse_special=False)
    engine.script = echo_script(model.eos_token_ids, [*answer, model.eos_token_ids[0]])
    engine.revive()
    engine.requests.clear()
    engine.aborted.clear()
    return engine


@pytest.fixture
def server_url(fake_server: RunningServer, fake_engine: FakeEngine) -> str:
    """What the SDK scenarios talk to."""
    return fake_server.url
