"""POST /tokenize and /detokenize: the ids a prompt becomes, and the text of ids. As vLLM has them.

/tokenize gives exactly the ids that /v1/completions (prompt) or /v1/chat/completions (messages)
would compute, and refuses what they refuse.
"""

import msgspec
from fastapi import APIRouter, Request, Response

from protocol.errors import InvalidRequest
from protocol.tokenize import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from protocol.tokenizer import Tokenizer
from protocol.validation import parse
from server.body import read_json_body
from server.convert import check_model
from server.offload import call_sized
from server.openapi import answers, request_body
from server.prompts import encode_messages, encode_prompt
from server.state import AppState, ServedModel
from server.streaming import ignored_header

router = APIRouter()


@router.post(
    "/tokenize",
    openapi_extra=request_body(TokenizeRequest),
    responses=answers(TokenizeReply),
    response_class=Response,
)
async def tokenize(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    raw_body = await read_json_body(request)
    body, ignored = parse(
        TokenizeRequest, raw_body, state.config.unknown_fields, state.config.body_limits
    )
    if body.model is not None:
        check_model(body.model, state.model)
    token_ids = await call_sized(len(raw_body), _encode, body, state.model)
    reply = TokenizeReply(
        count=len(token_ids),
        max_model_len=state.model.max_model_len,
        tokens=token_ids,
        token_strs=_spell(token_ids, state.model.tokenizer) if body.return_token_strs else None,
    )
    return _reply(reply, ignored)


@router.post(
    "/detokenize",
    openapi_extra=request_body(DetokenizeRequest),
    responses=answers(DetokenizeReply),
    response_class=Response,
)
async def detokenize(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    raw_body = await read_json_body(request)
    body, ignored = parse(
        DetokenizeRequest, raw_body, state.config.unknown_fields, state.config.body_limits
    )
    if body.model is not None:
        check_model(body.model, state.model)
    tokenizer = state.model.tokenizer
    for i, token_id in enumerate(body.tokens):
        if token_id >= tokenizer.vocab_size:
            raise InvalidRequest(
                f"Invalid 'tokens[{i}]': {token_id} is outside the vocabulary. "
                f"Maximum value is {tokenizer.vocab_size - 1}.",
                param=f"tokens[{i}]",
                code="invalid_value",
            )
    text = await call_sized(len(raw_body), tokenizer.decode, body.tokens, skip_special=False)
    return _reply(DetokenizeReply(prompt=text), ignored)


def _encode(body: TokenizeRequest, model: ServedModel) -> list[int]:
    if body.prompt is not None:
        return encode_prompt(body.prompt, model, add_special_tokens=body.add_special_tokens)
    return encode_messages(
        body.messages or [],
        model,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tool_use=body.tool_use,
        template_kwargs=body.chat_template_kwargs,
    ).token_ids


def _spell(token_ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each token alone; a part of a character is U+FFFD."""
    return [tokenizer.token_bytes(token_id).decode(errors="replace") for token_id in token_ids]


def _reply(body: msgspec.Struct, ignored: list[str]) -> Response:
    return Response(
        msgspec.json.encode(body), headers=ignored_header(ignored), media_type="application/json"
    )
