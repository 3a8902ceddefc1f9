"""The server's options. Frozen; built once from file, environment and flags by server/cli.py."""

from typing import Literal

import msgspec

from engine.config import EngineConfig

Source = Literal["huggingface", "modelscope"]
ToolFormatChoice = Literal[
    "auto", "chatglm3", "hermes", "llama3", "qwen3_coder", "qwen_agent", "react"
]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP half; the engine's half is engine.config.EngineConfig."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1  # HTTP processes on one engine
    served_model_names: tuple[str, ...] = ()  # the first is used in replies; empty = from the model
    api_keys: tuple[str, ...] = ()  # empty = no authentication
    unknown_fields: Literal["refuse", "warn"] = "refuse"  # warn: a header names the ignored fields
    max_waiting: int = 1000  # sequences; with more in the queue requests are refused
    drain_timeout: int = 30  # seconds that running requests may go on when the server is to end
    # seconds without a step after which an engine that has work counts as hung
    step_timeout: int = 300
    vllm_metrics: bool = False  # /metrics has vLLM's names too
    otlp_endpoint: str | None = None  # base URL that traces go to; None = OpenTelemetry's variables
    log_format: Literal["json", "console"] = "json"
    tool_format: ToolFormatChoice = "auto"  # of calls; auto = what the chat template shows
    tool_grammar: Literal["always", "asked"] = "always"  # asked: where a request needs it


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `qwen-serve serve` needs, as handed to the child processes."""

    server: ServerConfig
    engine: EngineConfig
    data_dir: str
    source: Source = "huggingface"  # the hub that a model which is not on disk comes from
    revision: str | None = None  # branch, tag or commit; None = the hub's own default
    engine_address: str  # ZeroMQ endpoint, ipc://...
