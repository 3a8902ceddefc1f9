"""POST /v1/completions."""

import time
from collections.abc import Iterable, Iterator, Sequence
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from engine.messages import TokenLogprobs
from protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from protocol.detokenizer import Detokenizer
from protocol.logprobs import finite, token_text
from protocol.sse import obfuscation
from protocol.usage import Usage
from protocol.validation import parse
from server.body import read_json_body
from server.choice import Delta
from server.convert import check_model, completion_requests, system_fingerprint
from server.deadline import Deadline
from server.generation import Generation
from server.limits import lease_of
from server.offload import call_sized
from server.openapi import answers, request_body
from server.output_text import TextOptions
from server.request_record import RequestRecord
from server.state import AppState, ServedModel
from server.streaming import ignored_header, respond

PATH = "/v1/completions"

_BYTES_MARK = "bytes:"

router = APIRouter()


@router.post(
    PATH,
    openapi_extra=request_body(CompletionRequest),
    responses=answers(Completion, streams=True),
    response_class=Response,
)
async def create_completion(request: Request) -> Response:
    """Continue one or many prompts with n choices each, as one reply or as a stream."""
    state: AppState = request.app.state.qwen
    deadline = Deadline.of(request.headers)
    state.admission.check(deadline.begin_within_s)
    raw_body = await read_json_body(request)
    body, ignored = parse(
        CompletionRequest, raw_body, state.config.unknown_fields, state.config.body_limits
    )
    check_model(body.model, state.model)
    reply_id = f"cmpl-{uuid4().hex}"
    requests = await call_sized(len(raw_body), completion_requests, body, state.model, reply_id)
    lease = lease_of(request)
    await lease.charge(requests, body.num_candidates)
    generation = Generation(
        state.engine,
        requests,
        state.model.tokenizer,
        TextOptions.of(body),
        state.metrics.request_started(
            RequestRecord.of(request.scope), PATH, "text_completion", body.model
        ),
        candidates_per_prompt=body.num_candidates,
        live=state.live,
    )
    lease.attach(generation)
    return await respond(
        request,
        generation,
        CompletionWriter(body, state.model, reply_id, [r.prompt_token_ids for r in requests]),
        deadline=deadline,
        stream=bool(body.stream),
        headers=ignored_header(ignored),
    )


class CompletionWriter:
    """A ReplyWriter (server/streaming.py) of this endpoint's wire format."""

    def __init__(
        self,
        request: CompletionRequest,
        model: ServedModel,
        reply_id: str,
        prompts: Sequence[list[int]],
    ) -> None:
        """`prompts`: of every sequence, in their order."""
        self._num_choices = request.num_choices
        self._num_candidates = request.num_candidates
        self._num_top = request.logprobs
        self._is_obfuscated = request.include_obfuscation
        self._has_usage = request.include_usage
        self._no_usage: UnsetType | None = None if request.include_usage else UNSET
        self._tokenizer = model.tokenizer
        self._model_name = model.names[0]
        self._fingerprint = system_fingerprint(model)
        self._id = reply_id
        self._created = int(time.time())
        # sequence -> prompt that is still to be echoed, and how much echoed text came before
        self._to_echo = dict(enumerate(prompts)) if request.echo else {}
        self._num_echoed_characters = [0] * len(prompts)

    def opening(self) -> Iterator[CompletionChoice]:
        return iter(())

    def pieces(self, index: int, delta: Delta) -> Iterator[CompletionChoice]:
        prompt_ids = self._to_echo.pop(index, None)
        if prompt_ids is not None:
            yield self._echo(index, prompt_ids, delta.prompt_logprobs)
        if delta.text or delta.logprobs:
            start = self._num_echoed_characters[index]
            logprobs = self._logprobs(
                (one.logprobs for one in delta.logprobs),
                [start + one.offset for one in delta.logprobs],
            )
            yield CompletionChoice(delta.text, index, logprobs, None)
        if delta.finish_reason is not None:
            yield CompletionChoice("", index, None, delta.finish_reason)

    def _echo(
        self,
        index: int,
        prompt_ids: Sequence[int],
        prompt_logprobs: Sequence[TokenLogprobs | None] | None,
    ) -> CompletionChoice:
        """The prompt as the model saw it, control tokens included, but not a prefix of ours."""
        detokenizer = Detokenizer(self._tokenizer, skip_special=False, starts_text=True)
        text, offsets = "", []
        prefix = self._tokenizer.prompt_prefix
        num_ours = len(prefix) if tuple(prompt_ids[: len(prefix)]) == prefix else 0
        for position, token_id in enumerate(prompt_ids):
            offsets.append(len(text))
            text += "" if position < num_ours else detokenizer.feed((token_id,))
        text += detokenizer.flush()
        self._num_echoed_characters[index] = len(text)
        if self._num_top is None or prompt_logprobs is None:
            return CompletionChoice(text, index, None, None)
        logprobs = self._logprobs(prompt_logprobs, offsets, first_token_id=prompt_ids[0])
        return CompletionChoice(text, index, logprobs, None)

    def _logprobs(
        self,
        positions: Iterable[TokenLogprobs | None],
        offsets: list[int],
        first_token_id: int | None = None,
    ) -> CompletionLogprobs | None:
        """The parallel arrays; a position that is None is a prompt's first token."""
        if self._num_top is None:
            return None
        result = CompletionLogprobs([], [], [] if self._num_top else None, offsets)
        for position in positions:
            token_id = first_token_id if position is None else position.token_id
            assert token_id is not None
            result.tokens.append(self._token_text(token_id))
            result.token_logprobs.append(None if position is None else finite(position.logprob))
            if result.top_logprobs is not None:
                result.top_logprobs.append(None if position is None else self._top(position))
        return result

    def _top(self, position: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens and the sampled one; of tokens with one text the likelier."""
        top: dict[str, float] = {}
        for token_id, logprob in [*position.top, (position.token_id, position.logprob)]:
            top.setdefault(self._token_text(token_id), finite(logprob))
        return top

    def _token_text(self, token_id: int) -> str:
        return token_text(self._tokenizer.token_bytes(token_id), mark=_BYTES_MARK)

    def chunk(self, piece: CompletionChoice) -> Completion:
        return self._completion([piece], self._no_usage, obfuscate=self._is_obfuscated)

    def last_chunk(self, usage: Usage) -> Completion | None:
        return self._completion([], usage) if self._has_usage else None

    def _completion(
        self,
        choices: list[CompletionChoice],
        usage: Usage | UnsetType | None,
        *,
        obfuscate: bool = False,
    ) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model_name,
            choices=choices,
            system_fingerprint=self._fingerprint,
            usage=usage,
            obfuscation=obfuscation(choices[0].text) if obfuscate else UNSET,
        )

    def reply(self, pieces: Sequence[CompletionChoice], generation: Generation) -> Completion:
        by_sequence: list[list[CompletionChoice]] = [[] for _ in generation.choices]
        for piece in pieces:
            by_sequence[piece.index].append(piece)
        choices = [
            self._choice(index, by_sequence[sequence])
            for index, sequence in enumerate(self._chosen(generation))
        ]
        return self._completion(choices, generation.usage())

    def _chosen(self, generation: Generation) -> Iterator[int]:
        """Sequences to return: of each prompt the best, or all in their order."""
        for first in range(0, len(generation.choices), self._num_candidates):
            candidates = range(first, first + self._num_candidates)
            if self._num_candidates == self._num_choices:
                yield from candidates
                continue
            ranked = sorted(candidates, key=lambda i: -generation.choices[i].mean_logprob)
            yield from ranked[: self._num_choices]

    def _choice(self, index: int, pieces: Sequence[CompletionChoice]) -> CompletionChoice:
        """Fold a sequence's pieces as a client folds the chunks of a stream."""
        parts = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        logprobs = None
        if self._num_top is not None:
            logprobs = CompletionLogprobs(
                [token for part in parts for token in part.tokens],
                [logprob for part in parts for logprob in part.token_logprobs],
                [top for part in parts for top in part.top_logprobs or ()]
                if self._num_top
                else None,
                [offset for part in parts for offset in part.text_offset],
            )
        text = "".join(piece.text for piece in pieces)
        return CompletionChoice(text, index, logprobs, pieces[-1].finish_reason)
