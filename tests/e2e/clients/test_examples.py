"""Every program of examples/, as a user starts it, against the command with a real model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.clients.conftest import CODER, SMOL
from tests.e2e.real_server import RealServer

pytestmark = pytest.mark.real_model

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
# what a grammar makes even the weakest model do
PROMISED = {
    "function_calling": 'calls get_weather({"city": "Paris"})\n  and gets: 31 °C and sunny\n',
    "structured_extraction": "\nopened: ",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Qwen-Agent leaves a folder where it runs


def output_of(name: str, server: RealServer, *options: str) -> str:
    """What it prints; a warning on standard error is as bad as an exit status."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), "--base-url", f"{server.url}/v1", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_well_with_the_default_model(name: str, smol: RealServer) -> None:
    output = output_of(name, smol)
    lines = output.splitlines()
    assert SMOL in lines[0]
    assert len(lines) > 1 and lines[-1]
    assert PROMISED.get(name, "") in output


def test_langchain_agent(coder: RealServer) -> None:
    output = output_of("langchain_agent", coder, "--model", CODER)
    assert "The model calls get_weather({'city': 'Paris'})" in output
    assert "and gets: In Paris it is 31 degrees Celsius and sunny." in output


def test_react_by_hand(coder: RealServer) -> None:
    output = output_of("react_by_hand", coder, "--model", CODER)
    assert 'Action: get_weather\nAction Input: {"city": "Paris"}' in output
    assert "Observation: In Paris it is 31 degrees Celsius and sunny." in output
    assert "31 degrees" in output.split("Final Answer:")[1]


def test_qwen_agent_assistant(coder: RealServer) -> None:
    output = output_of("qwen_agent_assistant", coder, "--model", CODER)
    assert 'The model calls get_weather({"city": "Paris"})' in output
    assert "  and gets: 31 degrees Celsius and sunny" in output
