"""`qwen-serve serve --tensor-parallel-size`: real processes, and one of them killed."""

import os
import re
import signal
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.real_server import RealServer, real_server
from tests.waiting import wait_until

pytestmark = pytest.mark.real_model
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]


def followers(server: RealServer) -> list[int]:
    """Process ids of the newest ranks."""
    starts = re.findall(r"started tensor-parallel ranks.*?\[([\d, ]+)\]", server.log.read_text())
    return [int(pid) for pid in starts[-1].split(",")]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_rank_is_a_lost_engine(smollm2_path: Path, tmp_path: Path) -> None:
    options = ("--tensor-parallel-size", "3", "--served-model-name", "m", "--dtype", "float32")
    with (
        real_server(tmp_path, smollm2_path, *options, "--kv-cache-memory", "64MiB") as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):

        def answer() -> str:
            try:
                reply = client.chat.completions.create(
                    model="m", messages=QUESTION, temperature=0, max_tokens=16
                )
            except openai.InternalServerError:  # no engine for the moment
                return ""
            return reply.choices[0].message.content or ""

        first = answer()
        assert "Paris" in first
        ranks = followers(server)
        assert len(ranks) == 2
        stream = client.chat.completions.create(
            model="m",
            messages=QUESTION,
            stream=True,
            max_tokens=400,
            extra_body={"min_tokens": 400},
        )
        next(stream)
        os.kill(ranks[1], signal.SIGKILL)
        *_, last = stream  # the next engine goes on with it
        assert last.choices[0].finish_reason == "length"
        assert wait_until(answer) == first
        newest = followers(server)
        assert not set(newest) & set(ranks)
        assert not is_alive(ranks[0]), "the other rank must not outlive its group"
    assert not any(is_alive(pid) for pid in newest)
