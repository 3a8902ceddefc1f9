"""GET /livez, /readyz and /health, for supervisors and load balancers.

Live: this process answers, and the engine gets on with what it has to do. Ready: the engine takes
requests. /health is /readyz under the name that other inference servers use.
"""

import msgspec
from fastapi import APIRouter, Request, Response

from server.openapi import answers_or_is_unavailable
from server.state import AppState

router = APIRouter()


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    status: str
    reason: str | None = None  # one sentence, absent when all is well


_ANSWERS = answers_or_is_unavailable(Health)


@router.get("/livez", responses=_ANSWERS, response_class=Response)
async def live(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    silent_s = state.engine.silent_s()
    if silent_s <= state.config.step_timeout:
        return _reply(Health("ok"), 200)
    reason = f"The engine has requests and has said nothing for {silent_s:.0f} s."
    return _reply(Health("unavailable", reason), 503)


@router.get("/readyz", responses=_ANSWERS, response_class=Response)
@router.get("/health", responses=_ANSWERS, response_class=Response)
async def ready(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    reason = state.engine.health()
    if reason is None:
        return _reply(Health("ok"), 200)
    return _reply(Health("unavailable", reason), 503)


def _reply(health: Health, status: int) -> Response:
    # a cached "ok" would hide an outage
    return Response(
        msgspec.json.encode(health),
        status_code=status,
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )
