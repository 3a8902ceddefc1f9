"""The application around a scripted engine and models that call tools, in each of the formats."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from engine.fake import Script
from engine.messages import EngineRequest, Event, Finished, FinishReason, TokenEvent, TokenLogprobs
from protocol.prompt import ChatTemplate
from protocol.prompt_format import PromptFormat
from protocol.qwen_format import QwenFormat
from protocol.tokenizer import Tokenizer
from protocol.tools.formats import ToolFormat
from server.config import ServerConfig
from server.state import AppState, ServedModel
from server.tool_support import tool_support
from tests.protocol.thinking_templates import HYBRID, IM_END, NEVER, thinking_tokenizer
from tests.server.scripted_app import App
from tests.server.small_app import small_state

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": WEATHER_SCHEMA,
}
TIME: dict[str, Any] = {"name": "get_time"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
STRICT_WEATHER: dict[str, Any] = {
    **WEATHER,
    "strict": True,
    "parameters": {**WEATHER_SCHEMA, "additionalProperties": False},
}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def function_tools(*parameters: object, **more: object) -> list[dict[str, Any]]:
    """Tools f0, f1, ... with these parameters."""
    return [
        {"type": "function", "function": {"name": f"f{i}", "parameters": one, **more}}
        for i, one in enumerate(parameters)
    ]


@cache
def tokenizer() -> Tokenizer:
    """One id for each byte, <|im_start|>, <|im_end|>, <think> and </think>."""
    return thinking_tokenizer()


@cache
def plain_tokenizer() -> Tokenizer:
    """Of a model that cannot think."""
    return thinking_tokenizer(has_markers=False)


@cache
def _prompt_format(source: str | None, window: int) -> PromptFormat:
    if source is None:
        return QwenFormat(plain_tokenizer(), window)
    return ChatTemplate(source, tokenizer() if "<think>" in source else plain_tokenizer())


def tool_model(
    chosen: ToolFormat | None = None, *, template: str | None = HYBRID, window: int = 6144
) -> ServedModel:
    """A model that calls tools in the format of its template, or in the one chosen for it.

    Without a template it is one of the first Qwen models, with `window` tokens for the history.
    """
    prompt_format = _prompt_format(template, window)
    words = tokenizer() if template and "<think>" in template else plain_tokenizer()
    return replace(
        small_state().model,
        tokenizer=words,
        chat_template=prompt_format,
        eos_token_ids=(words.special_tokens[IM_END],),
        max_model_len=1 << 20,
        tools=tool_support(prompt_format, template, chosen),
    )


HERMES = tool_model()
REACT = tool_model(template=None)
MODELS: Mapping[ToolFormat, ServedModel] = {
    ToolFormat.HERMES: HERMES,
    ToolFormat.REACT: REACT,
    ToolFormat.QWEN3_CODER: tool_model(ToolFormat.QWEN3_CODER),
    ToolFormat.LLAMA3: tool_model(ToolFormat.LLAMA3),
    ToolFormat.QWEN_AGENT: tool_model(ToolFormat.QWEN_AGENT, template=NEVER),
}


def tool_app(model: ServedModel, *scripts: Script, config: ServerConfig | None = None) -> App:
    app = App(*scripts, config=config)
    app.state = with_model(app.state, model)
    return app


def with_model(state: AppState, model: ServedModel) -> AppState:
    return replace(state, model=model)


def ids_of(text: str) -> list[int]:
    """A token for each byte, which every model here reads alike; so markers can be cut too."""
    return plain_tokenizer().encode(text, parse_special=False)


def answering(*texts: str, reason: FinishReason = "stop", pause_s: float = 0) -> Script:
    """Each text is one event, then the end. Token i has the logprob -i - 1."""
    return writing([ids_of(text) for text in texts], reason, pause_s)


def cut_at(text: str, *cuts: int) -> list[list[int]]:
    """The tokens of a text in events: cut at these places, also inside a character."""
    ids = ids_of(text)
    places = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [ids[i:j] for i, j in pairwise(places) if i < j]


def writing(
    events: Sequence[Sequence[int]], reason: FinishReason = "stop", pause_s: float = 0
) -> Script:
    def script(request: EngineRequest) -> Iterator[Event | float]:
        position = 0
        for ids in events:
            logprobs = None
            if request.sampling.logprobs is not None:
                logprobs = [TokenLogprobs(t, -position - i - 1.0, []) for i, t in enumerate(ids)]
            position += len(ids)
            yield TokenEvent(request.id, list(ids), logprobs)
            yield pause_s
        yield Finished(
            request.id,
            reason,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=position + (reason == "stop"),
        )

    return script


def prompt_of(app: App) -> str:
    """The text of the last request's prompt."""
    ids = app.engine.requests[-1].prompt_token_ids
    return app.state.model.tokenizer.decode(ids, skip_special=False)


def folded(events: Sequence[Any]) -> dict[str, Any]:
    """The chunks of a stream as OpenAI's own SDK folds them into a reply."""
    state = ChatCompletionStreamState()
    for event in events:
        if event != "[DONE]":
            state.handle_chunk(ChatCompletionChunk.model_validate(event))
    snapshot = state.current_completion_snapshot
    return snapshot.model_dump(mode="json")


def said(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice says, the same for a reply and a folded stream: ids and null fields left out.

    The ids of calls are checked to be different ones.
    """
    message = choice["message"]
    calls = message.get("tool_calls") or []
    assert len({call["id"] for call in calls}) == len(calls)
    function = message.get("function_call")
    return {
        "content": message["content"],
        "reasoning": message.get("reasoning_content"),
        "calls": [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        "function_call": function and (function["name"], function["arguments"]),
        "finish_reason": choice["finish_reason"],
        "logprobs": (choice["logprobs"] or {}).get("content") or [],
    }
