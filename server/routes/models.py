"""GET /v1/models and /v1/models/{model}: every name the model is served under."""

import msgspec
from fastapi import APIRouter, Request, Response

from protocol.errors import ModelNotFound
from protocol.models import Model, ModelList
from server.openapi import answers
from server.state import AppState, ServedModel

router = APIRouter()


class ModelWithLimit(Model, frozen=True, kw_only=True):
    """OpenAI's object and one field of ours, which its SDK passes through."""

    max_model_len: int  # tokens, prompt and output together


class ModelsWithLimit(ModelList, frozen=True, kw_only=True):
    data: list[ModelWithLimit]  # type: ignore[assignment]


@router.get("/v1/models", responses=answers(ModelsWithLimit), response_class=Response)
async def list_models(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    models = [_describe(name, state.model) for name in state.model.names]
    return _reply(ModelsWithLimit(data=models))


@router.get(  # names may hold slashes, as on the hub
    "/v1/models/{model:path}", responses=answers(ModelWithLimit), response_class=Response
)
async def retrieve_model(request: Request, model: str) -> Response:
    state: AppState = request.app.state.qwen
    if model not in state.model.names:
        raise ModelNotFound(model)
    return _reply(_describe(model, state.model))


def _describe(name: str, model: ServedModel) -> ModelWithLimit:
    return ModelWithLimit(
        id=name, created=model.created, owned_by="qwen-serve", max_model_len=model.max_model_len
    )


def _reply(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
