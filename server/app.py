"""The FastAPI application: routes, error handlers and middleware around one AppState.

Called by the process that serves (server/worker.py) and by tests. Starts and stops nothing.
"""

from fastapi import FastAPI

from server.auth import AuthMiddleware
from server.errors import add_exception_handlers
from server.middleware import RequestMiddleware
from server.routes import chat, completions, health, metrics, models, tokenize
from server.state import AppState


def create_app(state: AppState) -> FastAPI:
    """Build the application; routes find `state` at `request.app.state.qwen`."""
    app = FastAPI(title="qwen-serve", redirect_slashes=False)
    app.state.qwen = state
    add_exception_handlers(app)
    for module in (chat, completions, models, tokenize, health, metrics):
        app.include_router(module.router)
    app.add_middleware(AuthMiddleware, api_keys=state.config.api_keys)
    app.add_middleware(  # added last: outermost
        RequestMiddleware, metrics=state.metrics, traces=state.traces
    )
    return app
