"""The FastAPI application: routes, error handlers and middleware around one AppState.

Called by the process that serves (server/worker.py) and by tests. Starts and stops nothing.
"""

from fastapi import FastAPI

from server.access import Access
from server.auth import AuthMiddleware
from server.errors import add_exception_handlers
from server.limits import LimitsMiddleware
from server.middleware import RequestMiddleware
from server.routes import chat, completions, health, metrics, models, tokenize
from server.state import AppState


def create_app(state: AppState, access: Access | None = None) -> FastAPI:
    """Build the application; routes find `state` at `request.app.state.qwen`.

    `access`: None = what the configuration says now. Raises KeyFileError.
    """
    access = access or Access(state.config)
    app = FastAPI(
        title="qwen-serve",
        redirect_slashes=False,
        # without it FastAPI serves no page that shows it, either
        openapi_url="/openapi.json" if state.config.docs else None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.qwen = state
    add_exception_handlers(app)
    for module in (chat, completions, models, tokenize, health, metrics):
        app.include_router(module.router)
    app.add_middleware(LimitsMiddleware, store=access.limits)
    app.add_middleware(AuthMiddleware, keys=access.keys)
    app.add_middleware(  # added last: outermost
        RequestMiddleware, metrics=state.metrics, traces=state.traces
    )
    return app
