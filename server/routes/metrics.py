"""GET /metrics, in Prometheus' text format."""

import asyncio

from fastapi import APIRouter, Request, Response

from server.openapi import answers_text
from server.state import AppState

router = APIRouter()


@router.get("/metrics", responses=answers_text(), response_class=Response)
async def metrics(request: Request) -> Response:
    state: AppState = request.app.state.qwen
    # in a thread: with several workers it reads files for tens of milliseconds
    num_tasks = len(asyncio.all_tasks())
    body, content_type = await asyncio.to_thread(state.metrics.render, num_tasks)
    # a header, as a media_type would be given a second charset
    return Response(body, headers={"content-type": content_type})
