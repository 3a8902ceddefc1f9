"""Every option of `qwen-serve serve`, listed once as data.

The command line (server/cli.py), the merge of file, environment and flags (server/settings.py) and
the table in docs/configuration.md all come from this list. Defaults are those of the frozen config
structs, not repeated here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec

from engine.config import EngineConfig
from server.config import ServeConfig, ServerConfig
from server.option_kinds import (
    CREDENTIALS,
    OBJECT,
    ORIGIN,
    REDIS_URL,
    SIZE,
    SWITCH,
    URL,
    Kind,
    choice,
    integer,
    integer_or,
    text,
)

ENVIRONMENT_PREFIX = "QWEN_SERVE_"
EMBEDDED_MODEL = "smollm2"


@dataclass(frozen=True, slots=True)
class Option:
    """One option; its one name makes the flag, the variable and the key of the file."""

    name: str  # as in the file: max_model_len
    kind: Kind
    help: str  # one sentence without its full stop
    struct: type[ServerConfig] | type[EngineConfig] | None  # None: of the command itself
    field: str = ""  # of the struct; empty = the name
    repeatable: bool = False
    default_note: str = ""  # what a default of None or () means

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def target(self) -> str:
        return self.field or self.name

    @property
    def default(self) -> object:
        """The value where nothing sets it: the struct's own, or for the command's the one below."""
        if self.struct is None or self.name == "model":
            return _COMMAND_DEFAULTS[self.name]
        fields = {field.name: field for field in msgspec.structs.fields(self.struct)}
        return fields[self.target].default

    @property
    def default_text(self) -> str:
        """The default as the documentation shows it."""
        if self.default_note:
            return self.default_note
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        return str(self.default)


_COMMAND_DEFAULTS: dict[str, object] = {
    "model": EMBEDDED_MODEL,
    "source": "huggingface",
    "revision": None,
    "data_dir": "~/.local/share/qwen-serve",
    "config": None,
}


def _words(struct: type[msgspec.Struct], field: str) -> Kind:
    """The kind of a Literal field: exactly its words."""
    annotation = msgspec.structs.fields(struct)
    (literal,) = [entry.type for entry in annotation if entry.name == field]
    return choice(*get_args(literal))


OPTIONS: tuple[Option, ...] = (
    Option(
        "model",
        text("NAME"),
        "A local folder or .gguf file, `smollm2` (embedded), or a hub name like Qwen/Qwen3-0.6B",
        EngineConfig,
    ),
    Option("source", _words(ServeConfig, "source"), "The hub that a hub name belongs to", None),
    Option(
        "revision",
        text("NAME"),
        "The branch, tag or commit of a hub model",
        None,
        default_note="the hub's own",
    ),
    Option(
        "served_model_name",
        text("NAME"),
        "The name clients ask for; give it again for more names, the first is used in replies",
        ServerConfig,
        field="served_model_names",
        repeatable=True,
        default_note="the model's own name",
    ),
    Option("host", text("HOST"), "The address to listen on", ServerConfig),
    Option(
        "port", integer(0, 65535), "The port to listen on; 0 takes one that is free", ServerConfig
    ),
    Option("dtype", _words(EngineConfig, "dtype"), "The type computed in", EngineConfig),
    Option(
        "quantization",
        _words(EngineConfig, "quantization"),
        "Makes plain weights smaller while they are loaded",
        EngineConfig,
    ),
    Option("device", _words(EngineConfig, "device"), "Where the model runs", EngineConfig),
    Option(
        "max_model_len",
        integer_or("auto", 1),
        "The longest sequence, prompt and output together, in tokens; auto: what memory holds",
        EngineConfig,
        default_note="the model's own context",
    ),
    Option(
        "rope_scaling",
        OBJECT,
        "Stretches the context by scaling positions, in place of the model's own rope_scaling",
        EngineConfig,
        default_note="the model's own",
    ),
    Option("max_num_seqs", integer(1), "The most sequences in one step", EngineConfig),
    Option(
        "max_num_batched_tokens",
        integer(1),
        "The most tokens computed in one step",
        EngineConfig,
        default_note="512 on CPU, 8192 on CUDA",
    ),
    Option(
        "kv_cache_memory",
        SIZE,
        "Memory for the KV cache, as in 2GiB, 512MiB, 4GB or a number of bytes",
        EngineConfig,
        field="kv_cache_memory_bytes",
        default_note="from the memory that is free",
    ),
    Option(
        "kv_cache_dtype",
        _words(EngineConfig, "kv_cache_dtype"),
        "What keys and values are stored as: the type computed in, or half of its size",
        EngineConfig,
    ),
    Option("block_size", integer(1), "Tokens in one block of the KV cache", EngineConfig),
    Option(
        "enable_prefix_caching",
        SWITCH,
        "Reuse the KV cache of prompts that begin alike",
        EngineConfig,
    ),
    Option(
        "tensor_parallel_size",
        integer(1, 64),
        "The processes, each with a GPU of its own, that share the model's weights",
        EngineConfig,
    ),
    Option(
        "speculation",
        _words(EngineConfig, "speculation"),
        "Guess tokens out of earlier text and verify several in one step; auto: where it is exact",
        EngineConfig,
    ),
    Option(
        "draft_model",
        text("NAME"),
        "A smaller model of the same vocabulary, named as `model`, that guesses tokens instead",
        EngineConfig,
        default_note="none",
    ),
    Option(
        "num_speculative_tokens",
        integer(1, 32),
        "The most tokens guessed for a sequence in one step",
        EngineConfig,
    ),
    Option(
        "num_threads",
        integer(1),
        "CPU threads the engine computes with",
        EngineConfig,
        default_note="torch's own choice",
    ),
    Option(
        "api_key",
        text("KEY"),
        "A key clients must send as a bearer token; give it again for more keys",
        ServerConfig,
        field="api_keys",
        repeatable=True,
        default_note="none",
    ),
    Option(
        "keys_file",
        text("FILE"),
        "A file of keys with names, scopes and limits, made by `qwen-serve keys`",
        ServerConfig,
        default_note="none; without a key of any kind none is asked for",
    ),
    Option(
        "basic_auth",
        CREDENTIALS,
        "A user and a password that clients may send by Basic auth; give it again for more users",
        ServerConfig,
        repeatable=True,
        default_note="none",
    ),
    Option(
        "limits_store",
        REDIS_URL,
        "A Redis in which several workers or servers count the limits of keys together",
        ServerConfig,
        default_note="that of the queue; without one the one process counts",
    ),
    Option(
        "tls_certificate",
        text("FILE"),
        "A PEM file with the certificate, its chain behind it; the server then speaks HTTPS only",
        ServerConfig,
        default_note="none",
    ),
    Option(
        "tls_key",
        text("FILE"),
        "The certificate's private key, in PEM and not encrypted",
        ServerConfig,
        default_note="in the certificate's file",
    ),
    Option(
        "cors_origin",
        ORIGIN,
        "A web origin whose pages may use the server, or * for all; give it again for more",
        ServerConfig,
        field="cors_origins",
        repeatable=True,
        default_note="none",
    ),
    Option("docs", SWITCH, "Serve /docs, /redoc and /openapi.json", ServerConfig),
    Option(
        "max_body",
        SIZE,
        "The largest body of a request",
        ServerConfig,
        field="max_body_bytes",
    ),
    Option("max_messages", integer(1, 4096), "The most messages in a request", ServerConfig),
    Option(
        "max_content_parts",
        integer(1),
        "The most content parts in all messages of a request together",
        ServerConfig,
    ),
    Option("max_tools", integer(1), "The most tools or functions in a request", ServerConfig),
    Option("workers", integer(1, 64), "HTTP processes in front of the engine", ServerConfig),
    Option(
        "queue",
        REDIS_URL,
        "A Redis (redis://host:6379/0) through which many servers and engines work together",
        ServerConfig,
        default_note="none: the engine is on this machine",
    ),
    Option(
        "queue_name",
        text("NAME"),
        "Which servers and engines of that Redis belong together: those of one model",
        ServerConfig,
    ),
    Option(
        "unknown_fields",
        _words(ServerConfig, "unknown_fields"),
        "Refuse a request with a field that is not known, or only name the field in a header",
        ServerConfig,
    ),
    Option(
        "tool_format",
        _words(ServerConfig, "tool_format"),
        "How the model writes tool calls; auto: as its chat template shows it, else ReAct",
        ServerConfig,
    ),
    Option(
        "tool_grammar",
        _words(ServerConfig, "tool_grammar"),
        "Hold tool calls to their schemas always, or only where a request asks for it",
        ServerConfig,
    ),
    Option(
        "max_waiting",
        integer(1),
        "Sequences that may wait for the engine; with more, requests are refused (503)",
        ServerConfig,
    ),
    Option(
        "drain_timeout",
        integer(0),
        "Seconds that running requests may go on after SIGTERM",
        ServerConfig,
    ),
    Option(
        "step_timeout",
        integer(1),
        "Seconds that a step of the engine may take before the engine is started anew",
        ServerConfig,
    ),
    Option(
        "vllm_metrics",
        SWITCH,
        "Give metrics vLLM's names too, for its dashboards and autoscalers",
        ServerConfig,
    ),
    Option(
        "otlp_endpoint",
        URL,
        "Where traces go by OTLP over HTTP, as in http://127.0.0.1:4318; needs the extra `otel`",
        ServerConfig,
        default_note="what `OTEL_EXPORTER_OTLP_ENDPOINT` says, or none",
    ),
    Option("log_format", _words(ServerConfig, "log_format"), "How log lines look", ServerConfig),
    Option("data_dir", text("FOLDER"), "Where models and everything else that lasts is kept", None),
    Option(
        "config",
        text("FILE"),
        "A YAML or TOML file of these options, keys as in the first column",
        None,
        default_note="none",
    ),
)


def data_dir_of(value: str) -> Path:
    """The data directory a setting means; "~" is the user's home."""
    return Path(os.path.abspath(Path(value).expanduser()))


def markdown_table() -> str:
    """The option table of docs/configuration.md."""
    lines = ["| Key | Flag | Variable | Value | Default | Meaning |", "|---|---|---|---|---|---|"]
    for option in OPTIONS:
        flag = f"`{option.flag}`"
        if option.kind.is_switch:
            flag += f", `--no-{option.flag.removeprefix('--')}`"
        default = option.default_text if option.default_note else f"`{option.default_text}`"
        value = option.kind.metavar.replace("|", ", ") + (" ..." if option.repeatable else "")
        lines.append(
            f"| `{option.name}` | {flag} | `{option.variable}` | {value} | {default} "
            f"| {option.help} |"
        )
    return "\n".join(lines) + "\n"
