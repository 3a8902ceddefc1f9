"""The wire format of /v1/chat/completions: deltas into the chunks of a stream or the whole reply.

A ReplyWriter (server/streaming.py). Owns the ids and indices of tool calls.
"""

import secrets
import string
import time
from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType

from engine.messages import TokenLogprobs
from protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    ChunkDelta,
    FunctionCalled,
    FunctionDelta,
    ReplyMessage,
    TokenLogprob,
    ToolCallDelta,
    ToolCalled,
    TopLogprob,
)
from protocol.logprobs import finite, token_text
from protocol.sse import obfuscation
from protocol.tools.calls import CallArguments
from protocol.usage import Usage
from server.choice import CallEvent, Delta, PlacedLogprobs
from server.convert import system_fingerprint
from server.generation import Generation
from server.state import ServedModel

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24


class ChatWriter:
    """A ReplyWriter of this endpoint's wire format, for one request."""

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
        self._has_tools = request.tool_use is not None
        self._calls = _LegacyCalls() if request.functions else _Calls(request.num_choices)

    def opening(self) -> Iterator[ChunkChoice]:
        # OpenAI's content is null where nothing but calls follows, which is not known yet; text
        # that does follow takes its place in whatever a client folds the stream into
        content = None if self._has_tools else ""
        delta = ChunkDelta(role="assistant", content=content, refusal=None)
        for index in range(self._num_choices):
            yield ChunkChoice(index, delta, None, None)

    def pieces(self, index: int, delta: Delta) -> Iterator[ChunkChoice]:
        logprobs = self._logprobs(delta.logprobs) if self._has_logprobs else None
        deltas = list(self._deltas(index, delta)) if delta.reasoning or delta.calls else ()
        for i, one in enumerate(deltas):
            yield ChunkChoice(index, one, logprobs if i == len(deltas) - 1 else None, None)
        if not deltas and (delta.text or delta.logprobs):
            # tokens without a text of their own, as markers: content "" would end the thinking
            content = ChunkDelta(content=delta.text) if delta.text else ChunkDelta()
            yield ChunkChoice(index, content, logprobs, None)
        if delta.finish_reason is not None:
            yield ChunkChoice(index, ChunkDelta(), None, delta.finish_reason)

    def _deltas(self, index: int, delta: Delta) -> Iterator[ChunkDelta]:
        if delta.reasoning:
            # apart from the content: some clients read only one of the two from a chunk
            yield ChunkDelta(reasoning_content=delta.reasoning)
        if delta.text:
            yield ChunkDelta(content=delta.text)
        for call in delta.calls:
            yield self._calls.delta(index, call)

    def chunk(self, piece: ChunkChoice) -> ChatChunk:
        return self._chunk([piece], self._no_usage, piece.delta)

    def last_chunk(self, usage: Usage) -> ChatChunk | None:
        return self._chunk([], usage, None) if self._has_usage else None

    def _chunk(
        self, choices: list[ChunkChoice], usage: Usage | UnsetType | None, delta: ChunkDelta | None
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model_name,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
            obfuscation=obfuscation(_text_of(delta)) if self._is_obfuscated else UNSET,
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
        contents = [piece.delta.content for piece in pieces if isinstance(piece.delta.content, str)]
        reasoning = "".join(piece.delta.reasoning_content or "" for piece in pieces)
        message = ReplyMessage(
            content="".join(contents) if contents else None,
            reasoning_content=reasoning or UNSET,
            tool_calls=_fold_calls(pieces) or UNSET,
            function_call=_fold_function(pieces),
        )
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


class _Calls:
    """Tool calls as `tool_calls`: each has an id and its place among those of its choice."""

    def __init__(self, num_choices: int) -> None:
        self._last = [-1] * num_choices

    def delta(self, index: int, call: CallEvent) -> ChunkDelta:
        if isinstance(call, CallArguments):
            more = ToolCallDelta(
                index=self._last[index], function=FunctionDelta(arguments=call.text)
            )
            return ChunkDelta(tool_calls=[more])
        self._last[index] += 1
        begun = ToolCallDelta(
            index=self._last[index],
            id="call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH)),
            type="function",
            function=FunctionDelta(name=call.name, arguments=""),
        )
        return ChunkDelta(tool_calls=[begun])


class _LegacyCalls:
    """A call as `function_call`, of which an answer has one."""

    def delta(self, index: int, call: CallEvent) -> ChunkDelta:
        if isinstance(call, CallArguments):
            return ChunkDelta(function_call=FunctionDelta(arguments=call.text))
        return ChunkDelta(function_call=FunctionDelta(name=call.name, arguments=""))


def _text_of(delta: ChunkDelta | None) -> str:
    """What a client sees of a delta, whose length is to be hidden."""
    if delta is None:
        return ""
    calls = [] if delta.tool_calls is UNSET else [call.function for call in delta.tool_calls]
    if delta.function_call is not UNSET:
        calls.append(delta.function_call)
    return (delta.content or delta.reasoning_content or "") + "".join(
        call.arguments for call in calls
    )


def _fold_calls(pieces: Sequence[ChunkChoice]) -> list[ToolCalled]:
    folded: list[ToolCalled] = []
    for piece in pieces:
        for delta in piece.delta.tool_calls or ():
            if delta.index == len(folded):
                assert delta.id is not UNSET and delta.function.name is not UNSET
                called = FunctionCalled(delta.function.name, "")
                folded.append(ToolCalled(id=delta.id, function=called))
            last = folded[delta.index]
            arguments = last.function.arguments + delta.function.arguments
            called = FunctionCalled(last.function.name, arguments)
            folded[delta.index] = ToolCalled(id=last.id, function=called)
    return folded


def _fold_function(pieces: Sequence[ChunkChoice]) -> FunctionCalled | UnsetType:
    deltas = [piece.delta.function_call for piece in pieces if piece.delta.function_call]
    if not deltas:
        return UNSET
    name = deltas[0].name
    assert name is not UNSET
    return FunctionCalled(name, "".join(delta.arguments for delta in deltas))
