"""The application around a scripted engine and a model that thinks."""

from collections.abc import Iterator
from dataclasses import replace

from engine.fake import Script
from engine.messages import EngineRequest, Event, Finished, FinishReason, TokenEvent, TokenLogprobs
from protocol.prompt import ChatTemplate
from protocol.tokenizer import Tokenizer
from server.state import AppState
from tests.protocol.thinking_templates import HYBRID, IM_END, thinking_tokenizer
from tests.server.scripted_app import App
from tests.server.small_app import small_state


def thinking_state(
    state: AppState | None = None, template: str = HYBRID, *, is_special: bool = False
) -> AppState:
    """`state` (else one with nothing behind it) with such a model: a byte or a marker a token."""
    state = state or small_state()
    tokenizer = thinking_tokenizer(is_special=is_special)
    model = replace(
        state.model,
        tokenizer=tokenizer,
        chat_template=ChatTemplate(template, tokenizer),
        eos_token_ids=(tokenizer.special_tokens[IM_END],),
        max_model_len=1000,
    )
    return replace(state, model=model)


def thinking_app(*scripts: Script, template: str = HYBRID, is_special: bool = False) -> App:
    app = App(*scripts)
    app.state = thinking_state(app.state, template, is_special=is_special)
    return app


def answering(
    *texts: str,
    reason: FinishReason = "stop",
    tokenizer: Tokenizer | None = None,
    pause_s: float = 0,
) -> Script:
    """Each text is one event, then the end. Token i has the logprob -i - 1."""
    words = tokenizer or thinking_tokenizer()

    def script(request: EngineRequest) -> Iterator[Event | float]:
        position = 0
        for text in texts:
            ids = words.encode(text, parse_special=True)
            logprobs = None
            if request.sampling.logprobs is not None:
                logprobs = [TokenLogprobs(t, -position - i - 1.0, []) for i, t in enumerate(ids)]
            position += len(ids)
            yield TokenEvent(request.id, ids, logprobs)
            yield pause_s
        yield Finished(
            request.id,
            reason,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=position + (reason == "stop"),
        )

    return script
