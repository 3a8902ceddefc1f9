"""Builds sequences for tests."""

from engine.messages import EngineRequest, SamplingParams
from engine.sequence import Sequence


def make_sequence(
    params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None
) -> Sequence:
    request = EngineRequest(id="s", prompt_token_ids=prompt or [1, 2, 3], sampling=params)
    sequence = Sequence(request, arrival=0)
    sequence.token_ids += output or []
    return sequence
