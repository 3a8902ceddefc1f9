"""The server's options. Frozen; built once from file, environment and flags by server/cli.py."""

from typing import Literal

import msgspec

from engine.config import EngineConfig
from protocol.body_limits import BodyLimits

Source = Literal["huggingface", "modelscope"]
ToolFormatChoice = Literal[
    "auto", "chatglm3", "hermes", "llama3", "qwen3_coder", "qwen_agent", "react"
]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP half; the engine's half is engine.config.EngineConfig."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1  # HTTP processes on one engine
    queue: str | None = None  # URL of a Redis between servers and engines; None = one machine
    queue_name: str = "default"  # servers and engines of one name belong together
    served_model_names: tuple[str, ...] = ()  # the first is used in replies; empty = from the model
    api_keys: tuple[str, ...] = ()  # with all scopes
    keys_file: str | None = None  # see server/key_file.py
    basic_auth: tuple[str, ...] = ()  # user:password, with all scopes
    limits_store: str | None = None  # URL of a Redis; None = the memory of the one process
    tls_certificate: str | None = None  # PEM; None = plain HTTP
    tls_key: str | None = None  # None = in the same file
    cors_origins: tuple[str, ...] = ()  # empty = web pages of other origins may read nothing
    docs: bool = True  # /docs, /redoc, /openapi.json
    max_body_bytes: int = 16 * 2**20  # a million tokens of Chinese, as JSON escapes, are 10 MB
    max_messages: int = 4096
    max_content_parts: int = 10_000  # of all messages of a request
    max_tools: int = 512
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

    @property
    def body_limits(self) -> BodyLimits:
        """How large what a client sends may be, beyond its bytes."""
        return BodyLimits(
            max_messages=self.max_messages,
            max_content_parts=self.max_content_parts,
            max_tools=self.max_tools,
        )

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request needs a key; a keys file without any lets nobody in."""
        return bool(self.api_keys or self.basic_auth or self.keys_file)


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `qwen-serve serve` needs, as handed to the child processes."""

    server: ServerConfig
    engine: EngineConfig
    data_dir: str
    source: Source = "huggingface"  # the hub that a model which is not on disk comes from
    revision: str | None = None  # branch, tag or commit; None = the hub's own default
    engine_address: str  # of the queue: ipc://..., or what names.join_address makes
