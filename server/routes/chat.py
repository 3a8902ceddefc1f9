"""POST /v1/chat/completions."""

from uuid import uuid4

from fastapi import APIRouter, Request, Response

from protocol.chat import ChatCompletion, ChatRequest
from protocol.validation import parse
from server.body import read_json_body
from server.chat_plan import plan_chat
from server.chat_writer import ChatWriter
from server.convert import check_model
from server.deadline import Deadline
from server.generation import Generation
from server.limits import lease_of
from server.offload import call_sized
from server.openapi import answers, request_body
from server.request_record import RequestRecord
from server.state import AppState
from server.streaming import ignored_header, respond

PATH = "/v1/chat/completions"

router = APIRouter()


@router.post(
    PATH,
    openapi_extra=request_body(ChatRequest),
    responses=answers(ChatCompletion, streams=True),
    response_class=Response,
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation with n choices, as one reply or as a stream."""
    state: AppState = request.app.state.qwen
    deadline = Deadline.of(request.headers)
    state.admission.check(deadline.begin_within_s)
    raw_body = await read_json_body(request)
    body, ignored = parse(
        ChatRequest, raw_body, state.config.unknown_fields, state.config.body_limits
    )
    check_model(body.model, state.model)
    reply_id = f"chatcmpl-{uuid4().hex}"
    plan = await call_sized(
        len(raw_body),
        plan_chat,
        body,
        state.model,
        reply_id,
        always_guided=state.config.tool_grammar == "always",
    )
    lease = lease_of(request)
    await lease.charge(plan.requests, body.num_choices)
    generation = Generation(
        state.engine,
        plan.requests,
        state.model.tokenizer,
        plan.options,
        state.metrics.request_started(RequestRecord.of(request.scope), PATH, "chat", body.model),
        candidates_per_prompt=body.num_choices,
        live=state.live,
    )
    lease.attach(generation)
    return await respond(
        request,
        generation,
        ChatWriter(body, state.model, reply_id),
        deadline=deadline,
        stream=bool(body.stream),
        headers=ignored_header([*ignored, *plan.unenforced]),
    )
