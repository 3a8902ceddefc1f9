"""What reasoning_effort and enable_thinking do, on templates of every kind."""

from typing import Any, get_args

import pytest

from engine.messages import EngineRequest, SamplingParams
from protocol.chat import ReasoningEffort
from protocol.errors import InvalidRequest
from protocol.prompt import ChatTemplate
from protocol.reasoning import ThinkingStart
from server.thinking import thinking_kwargs, thinking_of
from tests.protocol.thinking_templates import ALWAYS, EFFORT, HYBRID, NEVER, thinking_tokenizer
from tests.server.small_app import small_state
from tests.server.thinking_app import thinking_state

TOKENIZER = thinking_tokenizer()
EFFORTS: tuple[ReasoningEffort, ...] = get_args(ReasoningEffort)


def kwargs_of(source: str, effort: ReasoningEffort | None = None, **kwargs: Any) -> dict[str, Any]:
    return dict(thinking_kwargs(effort, kwargs, ChatTemplate(source, TOKENIZER)))


def refusal(source: str, effort: ReasoningEffort | None = None, **kwargs: Any) -> tuple[Any, Any]:
    with pytest.raises(InvalidRequest) as raised:
        kwargs_of(source, effort, **kwargs)
    assert raised.value.status == 400
    return raised.value.code, raised.value.param


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_turns_thinking_on_or_off(effort: ReasoningEffort) -> None:
    is_on = effort != "none"
    assert kwargs_of(HYBRID, effort) == {"enable_thinking": is_on}
    assert kwargs_of(EFFORT, effort) == {"enable_thinking": is_on, "reasoning_effort": effort}
    assert kwargs_of("{{ reasoning_effort }}", effort) == {"reasoning_effort": effort}


@pytest.mark.parametrize("source", [HYBRID, EFFORT, ALWAYS, NEVER])
def test_nothing_asked_for(source: str) -> None:
    assert kwargs_of(source) == {}
    assert kwargs_of(source, other=1) == {"other": 1}


@pytest.mark.parametrize("effort", EFFORTS)
def test_without_a_switch_only_the_habit_is_accepted(effort: ReasoningEffort) -> None:
    refused = ("unsupported_value", "reasoning_effort")
    thinks, does_not = (ALWAYS, NEVER) if effort != "none" else (NEVER, ALWAYS)
    assert kwargs_of(thinks, effort) == {}
    assert refusal(does_not, effort) == refused


def test_the_switch_on_a_model_without_one() -> None:
    refused = ("unsupported_value", "chat_template_kwargs")
    assert refusal(ALWAYS, enable_thinking=False) == refused
    assert refusal(NEVER, enable_thinking=True) == refused
    assert kwargs_of(ALWAYS, enable_thinking=True) == {"enable_thinking": True}
    assert kwargs_of(NEVER, enable_thinking=False) == {"enable_thinking": False}


def test_contradictions() -> None:
    refused = ("invalid_parameter_combination", "reasoning_effort")
    assert refusal(HYBRID, "none", enable_thinking=True) == refused
    assert refusal(HYBRID, "low", enable_thinking=False) == refused
    assert refusal(EFFORT, "low", reasoning_effort="high") == refused
    assert kwargs_of(HYBRID, "low", enable_thinking=True) == {"enable_thinking": True}


def test_a_base_model_has_nothing_to_switch() -> None:
    assert thinking_kwargs("low", {"a": 1}, None) == {"a": 1}


def engine_request(prompt: str) -> EngineRequest:
    ids = TOKENIZER.encode(prompt, parse_special=True)
    return EngineRequest(id="r", prompt_token_ids=ids, sampling=SamplingParams(max_tokens=1))


def test_where_an_answer_begins() -> None:
    model = thinking_state().model
    for prompt, start in (
        ("<|im_start|>assistant\n", ThinkingStart.FREE),
        ("<|im_start|>assistant\n<think>\n", ThinkingStart.INSIDE),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ThinkingStart.OUTSIDE),
    ):
        thinking = thinking_of(engine_request(prompt).prompt_token_ids, model)
        assert thinking is not None
        assert thinking[1] is start


def test_a_model_without_markers_is_left_alone() -> None:
    for has_chat_template in (True, False):
        model = small_state(has_chat_template=has_chat_template).model
        assert thinking_of(engine_request("<think>").prompt_token_ids, model) is None
