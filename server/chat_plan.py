"""A checked chat request and the served model into what the engine is asked, and how to read it.

Called by the chat route, off the event loop where the request is long.
"""

from dataclasses import dataclass

import msgspec

from engine.messages import EngineRequest, Grammar, Thinking
from protocol.chat import ChatRequest
from protocol.reasoning import ThinkingMarkers, ThinkingStart
from server.convert import (
    SamplingBuilder,
    check_prompt_length,
    check_total_length,
    engine_request,
)
from server.grammars import grammar_of, thinking_before
from server.output_text import TextOptions
from server.prompts import Prompt, encode_messages
from server.state import ServedModel
from server.thinking import thinking_kwargs, thinking_of
from server.tool_calling import ToolCalling


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """One engine request for each of the n choices.

    Attributes:
        options: how the answers' tokens become text and calls.
        unenforced: paths in the request of what cannot be promised.
    """

    requests: list[EngineRequest]
    options: TextOptions
    unenforced: list[str]


def plan_chat(
    request: ChatRequest, model: ServedModel, reply_id: str, *, always_guided: bool = True
) -> ChatPlan:
    """`always_guided`: calls follow their schemas also where the request does not ask for it.

    Raises InvalidRequest (template, token ids, schemas), ContextLengthExceeded, NotFound (no chat
    model).
    """
    add_generation_prompt = request.add_generation_prompt
    use = request.tool_use
    prompt = encode_messages(
        request.messages,
        model,
        add_generation_prompt=(
            not request.continue_final_message
            if add_generation_prompt is None
            else add_generation_prompt
        ),
        continue_final_message=bool(request.continue_final_message),
        tool_use=use,
        template_kwargs=thinking_kwargs(
            request.reasoning_effort, request.chat_template_kwargs or {}, model.chat_template
        ),
    )
    length = len(prompt.token_ids)
    check_prompt_length(length, model.max_model_len, "messages")
    max_tokens = request.max_output_tokens
    if max_tokens is None:
        max_tokens = model.max_model_len - length
    check_total_length(length, max_tokens, model.max_model_len, "messages")
    sampling = SamplingBuilder(request, model).build(
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    calling = None
    if use is not None:
        format_ = model.tools.format
        calling = ToolCalling.of(use, format_, prompt.begun, request.response_format)
    # an answer of before that is gone on with does not think
    thinking = None if prompt.is_continued else thinking_of(prompt.token_ids, model)
    before = thinking_before(thinking, model)
    grammar = _grammar(request, model, before, calling, always_guided)
    return ChatPlan(
        [
            engine_request(request, f"{reply_id}-{i}", prompt.token_ids, sampling, i, grammar)
            for i in range(request.num_choices)
        ],
        _text_options(request, model, prompt, thinking, calling),
        calling.unenforced if calling is not None and grammar is not None else [],
    )


def _grammar(
    request: ChatRequest,
    model: ServedModel,
    thinking: Thinking | None,
    calling: ToolCalling | None,
    always_guided: bool,
) -> Grammar | None:
    plain = grammar_of(request.response_format, request.structured_outputs)
    is_guided = calling is not None and (
        always_guided or calling.needs_grammar() or plain is not None
    )
    if not is_guided and plain is None:
        return None
    if calling is not None and is_guided:
        return calling.grammar(model, thinking)
    assert plain is not None
    return msgspec.structs.replace(plain, thinking=thinking)


def _text_options(
    request: ChatRequest,
    model: ServedModel,
    prompt: Prompt,
    thinking: tuple[ThinkingMarkers, ThinkingStart] | None,
    calling: ToolCalling | None,
) -> TextOptions:
    template = model.chat_template
    assert template is not None  # encode_messages has refused the others
    return TextOptions.of(
        request,
        thinking,
        strips_start=template.strips_answer
        and not request.continue_final_message
        and not prompt.is_continued,
        calling=calling,
        tool_markers=frozenset() if calling is None else frozenset(calling.markers(model).values()),
    )
