"""POST /v1/chat/completions."""

import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from engine.messages import EngineRequest, TokenLogprobs
from protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    ChunkDelta,
    ReplyMessage,
    TokenLogprob,
    TopLogprob,
)
from protocol.logprobs import finite, token_text
from protocol.sse import obfuscation
from protocol.usage import Usage
from protocol.validation import parse
from server.body import read_json_body
from server.choice import Delta, PlacedLogprobs
from server.convert import chat_requests, check_model, system_fingerprint
from server.generation import Generation
from server.offload import call_sized
from server.openapi import request_body
from server.output_text import TextOptions
from server.state import AppState, ServedModel
from server.streaming import ignored_header, respond
from server.thinking import thinking_of

PATH = "/v1/chat/completions"

router = APIRouter()


@router.post(PATH, openapi_extra=request_body(ChatRequest))
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation with n choices, as one reply or as a stream."""
    state: AppState = request.app.state.qwen
    raw_body = await read_json_body(request)
    body, ignored = parse(ChatRequest, raw_body, state.config.unknown_fields)
    check_model(body.model, state.model)
    reply_id = f"chatcmpl-{uuid4().hex}"
    requests = await call_sized(len(raw_body), chat_requests, body, state.model, reply_id)
    generation = Generation(
        state.engine,
        requests,
        state.model.tokenizer,
        text_options(body, requests[0], state.model),
        state.metrics.request_started(PATH),
        candidates_per_prompt=body.num_choices,
    )
    return await respond(
        request,
        generation,
        ChatWriter(body, state.model, reply_id),
        stream=bool(body.stream),
        headers=ignored_header(ignored),
    )


def text_options(body: ChatRequest, request: EngineRequest, model: ServedModel) -> TextOptions:
    """How the answer's tokens become text."""
    template = model.chat_template
    return TextOptions.of(
        body,
        thinking_of(request.prompt_token_ids, model),
        strips_start=template is not None
        and template.strips_answer
        and not body.continue_final_message,
    )


class ChatWriter:
    """A ReplyWriter (server/streaming.py) of this endpoint's wire format."""

    def __init__(self, request: ChatRequest, model: ServedModel, reply_id: str) -> None:
        self._num_choices = request.num_choices
        self._has_logprobs = bool(request.logprobs)
        self._is_obfuscated = request.include_obfuscation
        self._has_usage = request.include_usage
        self._no_usage: UnsetType | None = None if request.include_usage else UNSET
        self._tokenizer = model.tokenizer
        self._model_name = model.names[0]
        self._fingerprint = system_fingerprint(model)
        self._id = reply_id
        self._created = int(time.time())

    def opening(self) -> Iterator[ChunkChoice]:
        delta = ChunkDelta(role="assistant", content="", refusal=None)
        for index in range(self._num_choices):
            yield ChunkChoice(index, delta, None, None)

    def pieces(self, index: int, delta: Delta) -> Iterator[ChunkChoice]:
        logprobs = self._logprobs(delta.logprobs) if self._has_logprobs else None
        if delta.reasoning:
            # apart from the content: some clients read only one of the two from a chunk
            thought = ChunkDelta(reasoning_content=delta.reasoning)
            yield ChunkChoice(index, thought, None if delta.text else logprobs, None)
        if delta.text or (delta.logprobs and not delta.reasoning):
            # tokens without a text of their own, as markers: content "" would end the thinking
            content = ChunkDelta(content=delta.text) if delta.text else ChunkDelta()
            yield ChunkChoice(index, content, logprobs, None)
        if delta.finish_reason is not None:
            yield ChunkChoice(index, ChunkDelta(), None, delta.finish_reason)

    def chunk(self, piece: ChunkChoice) -> ChatChunk:
        text = piece.delta.content or piece.delta.reasoning_content or ""
        return self._chunk([piece], self._no_usage, text)

    def last_chunk(self, usage: Usage) -> ChatChunk | None:
        return self._chunk([], usage, "") if self._has_usage else None

    def _chunk(
        self, choices: list[ChunkChoice], usage: Usage | UnsetType | None, text: str
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model_name,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
            obfuscation=obfuscation(text) if self._is_obfuscated else UNSET,
        )

    def reply(self, pieces: Sequence[ChunkChoice], generation: Generation) -> ChatCompletion:
        by_choice: list[list[ChunkChoice]] = [[] for _ in range(self._num_choices)]
        for piece in pieces:
            by_choice[piece.index].append(piece)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model_name,
            system_fingerprint=self._fingerprint,
            choices=[self._choice(index, parts) for index, parts in enumerate(by_choice)],
            usage=generation.usage(),
        )

    def _choice(self, index: int, pieces: Sequence[ChunkChoice]) -> ChatChoice:
        """Fold a choice's pieces as a client folds the chunks of a stream."""
        content = "".join(piece.delta.content or "" for piece in pieces)
        reasoning = "".join(piece.delta.reasoning_content or "" for piece in pieces)
        message = ReplyMessage(content=content, reasoning_content=reasoning or UNSET)
        logprobs = None
        if self._has_logprobs:
            logprobs = ChatLogprobs(
                [one for p in pieces if p.logprobs for one in p.logprobs.content]
            )
        finish_reason = pieces[-1].finish_reason
        assert finish_reason is not None  # a generation ends with the last choice's finish
        return ChatChoice(index, message, logprobs, finish_reason)

    def _logprobs(self, placed: Sequence[PlacedLogprobs]) -> ChatLogprobs:
        return ChatLogprobs([self._token_logprob(one.logprobs) for one in placed])

    def _token_logprob(self, logprobs: TokenLogprobs) -> TokenLogprob:
        own = self._top_logprob(logprobs.token_id, logprobs.logprob)
        top = [self._top_logprob(token_id, logprob) for token_id, logprob in logprobs.top]
        return TokenLogprob(own.token, own.logprob, own.bytes, top)

    def _top_logprob(self, token_id: int, logprob: float) -> TopLogprob:
        token_bytes = self._tokenizer.token_bytes(token_id)
        return TopLogprob(token_text(token_bytes), finite(logprob), list(token_bytes) or None)
