"""What every route needs, built once when a server process starts (server/app.py) and never
changed but for the generations that are live.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.client import EngineClient
from protocol.prompt_format import PromptFormat
from protocol.tokenizer import Tokenizer
from server.admission import Admission
from server.config import ServerConfig
from server.live import Live
from server.metrics import Metrics
from server.tool_support import ToolSupport
from server.tracing import NO_TRACES, Traces


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model as the HTTP side sees it."""

    names: tuple[str, ...]  # the first is the canonical one
    created: int  # unix seconds
    tokenizer: Tokenizer
    chat_template: PromptFormat | None  # None: a base model; chat is refused
    eos_token_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, Any]  # of generation_config: temperature, top_p, top_k, ...
    max_model_len: int
    tools: ToolSupport = field(default_factory=ToolSupport)


@dataclass(frozen=True, slots=True)
class AppState:
    config: ServerConfig
    engine: EngineClient
    model: ServedModel
    metrics: Metrics
    admission: Admission
    traces: Traces = NO_TRACES
    live: Live = field(default_factory=set)  # see server/draining.py
