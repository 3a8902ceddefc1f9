"""The `qwen-serve` command: serve, its halves server and engine, pull, quantize, keys and chat.

Turns flags into calls and errors into one line and an exit status: 2 for a bad option, 1 for
anything that failed. The options of `serve` come from server/options.py.
"""

import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from engine.quantize_job import QuantizeOptions
from server.access import Access
from server.chat_client import ChatClient, ChatError
from server.chat_session import ChatSession
from server.config import ServeConfig, Source
from server.key_commands import commands as key_commands
from server.key_file import KeyFileError
from server.logging import configure
from server.options import EMBEDDED_MODEL, OPTIONS, Option
from server.pull import default_name, pull
from server.pull_error import PullError
from server.quantize import CalibrationOptions, QuantizeError, quantize
from server.settings import SettingsError, resolve, resolve_data_dir
from server.supervisor import StartError, listen
from server.supervisor import serve as supervise
from server.tls import TlsError, check_certificate
from server.tracing import TracingError, is_traced

app = typer.Typer(
    name="qwen-serve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(key_commands, name="keys")


def _fail(message: object, status: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


def _check(name: str, value: str | int, is_good: bool, rule: str) -> None:
    if not is_good:
        flag = "--" + name.replace("_", "-")
        _fail(f"bad value {value!r} for {name} (from {flag}): it must be {rule}", 2)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"qwen-serve {version('qwen-serve')}")
        raise typer.Exit()


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve models of the Qwen family over the OpenAI API."""


Flags = str | bool | Sequence[str] | None


def _serve_command(**flags: Flags) -> None:
    _run_halves(flags, has_server=True, has_engine=True)


def _server_command(**flags: Flags) -> None:
    _run_halves(flags, has_server=True, has_engine=False)


def _engine_command(**flags: Flags) -> None:
    _run_halves(flags, has_server=False, has_engine=True)


def _run_halves(flags: Mapping[str, Flags], *, has_server: bool, has_engine: bool) -> NoReturn:
    try:
        config = resolve(flags, os.environ)
        if has_server:  # what is wrong with these is found before anything is loaded
            Access(config.server)
            check_certificate(config.server)
    except (SettingsError, KeyFileError, TlsError) as exc:
        _fail(exc, 2)
    if config.server.queue is None and not (has_server and has_engine):
        _fail("a server and an engine that are apart need a --queue that both can reach", 2)
    configure(config.server.log_format)
    try:
        if has_server:
            is_traced(config.server.otlp_endpoint, os.environ)
        # The port first: to find it taken after a download or a model load would waste minutes.
        with listen(config.server.host, config.server.port) if has_server else nullcontext() as at:
            status = supervise(_with_model(config), at, has_engine=has_engine)
    except (PullError, StartError, TracingError) as exc:
        _fail(exc, 1)
    raise typer.Exit(status)


def _with_model(config: ServeConfig) -> ServeConfig:
    """The same once the model is on disk."""
    path = pull(
        config.engine.model,
        Path(config.data_dir),
        source=config.source,
        revision=config.revision,
    )
    names = config.server.served_model_names or (default_name(config.engine.model, path),)
    replace = msgspec.structs.replace
    return replace(
        config,
        server=replace(config.server, served_model_names=names),
        engine=replace(
            config.engine, model=os.path.abspath(path), draft_model=_pull_draft_model(config)
        ),
    )


def _pull_draft_model(config: ServeConfig) -> str | None:
    name = config.engine.draft_model
    if name is None:
        return None
    is_local = Path(name).expanduser().exists()  # whatever the hub that the model comes from
    source: Source = "huggingface" if is_local else config.source
    return os.path.abspath(pull(name, Path(config.data_dir), source=source))


def _parameter(option: Option) -> inspect.Parameter:
    """The command-line form of an option; its text is parsed later, by server/settings.py."""
    declaration = option.flag
    kind: Any = list[str] if option.repeatable else str
    if option.kind.is_switch:
        declaration += f"/--no-{option.flag.removeprefix('--')}"
        kind = bool
    info = typer.Option(
        declaration,
        metavar=None if option.kind.is_switch else option.kind.metavar,
        help=f"{option.help}. [default: {option.default_text}]",
        show_default=False,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


_SETTINGS = (
    "Every option can also be set by an environment variable (QWEN_SERVE_PORT for --port) or in a "
    "file (--config): a flag wins over the environment, and that over the file."
)
_HALVES = {
    "serve": (_serve_command, "Serve a model on an OpenAI-compatible HTTP API."),
    "server": (
        _server_command,
        "The HTTP half of `serve`, for the engines of a --queue. Takes the same options; what is "
        "the engine's is not looked at, but for the model, whose tokenizer is needed.",
    ),
    "engine": (
        _engine_command,
        "The other half: one engine for the servers of a --queue. Takes the same options; what is "
        "the server's is not looked at.",
    ),
}
for _name, (_command, _help) in _HALVES.items():
    # Typer reads a command's options from its signature: this one is made from the list.
    _command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(option) for option in OPTIONS]
    )
    app.command(_name, help=f"{_help} {_SETTINGS}")(_command)


def _pull(
    name: str, source: str, revision: str | None, data_dir: str | None, *, refresh: bool = False
) -> Path:
    sources: dict[str, Source] = {"huggingface": "huggingface", "modelscope": "modelscope"}
    _check("source", source, source in sources, "huggingface or modelscope")
    folder = resolve_data_dir(data_dir, os.environ)
    try:
        return pull(name, folder, source=sources[source], revision=revision, refresh=refresh)
    except PullError as exc:
        _fail(exc, 1)


@app.command("pull")
def pull_command(
    name: Annotated[
        str,
        typer.Argument(help="smollm2, org/name of a hub, or org/name/file.gguf for one file of it"),
    ] = EMBEDDED_MODEL,
    source: Annotated[
        str, typer.Option(metavar="huggingface|modelscope", help="The hub to download from.")
    ] = "huggingface",
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. [default: the hub's own]")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where models are kept.")
    ] = None,
) -> None:
    """Download a model and print where it is."""
    path = _pull(name, source, revision, data_dir, refresh=True)
    typer.echo(path)


@app.command("quantize")
def quantize_command(
    model: Annotated[
        str, typer.Argument(help="A local folder or .gguf file, smollm2, or org/name of a hub")
    ],
    output: Annotated[Path, typer.Argument(help="The folder to write: a new or an empty one")],
    bits: Annotated[int, typer.Option(metavar="4|8", help="Bits of each number.")] = 4,
    group_size: Annotated[
        int, typer.Option(min=-1, help="Columns that share a scale; -1 = a whole row.")
    ] = 128,
    act_order: Annotated[
        bool,
        typer.Option(
            "--act-order/--no-act-order",
            "--desc-act/--no-desc-act",
            help="Round the columns of the largest inputs first.",
        ),
    ] = False,
    symmetric: Annotated[
        bool, typer.Option("--sym/--no-sym", help="Without zero points, or with.")
    ] = True,
    damp: Annotated[
        float, typer.Option(min=0, max=1, help="Of the Hessian's mean diagonal, added to it.")
    ] = 0.01,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Conversations or texts. [default: built in]"),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Lines of it that are used.")] = 128,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of each that are used.")] = 2048,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where it is computed.")
    ] = "auto",
    source: Annotated[
        str, typer.Option(metavar="huggingface|modelscope", help="The hub to download from.")
    ] = "huggingface",
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. [default: the hub's own]")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where models are kept.")
    ] = None,
) -> None:
    """Write a smaller copy of a model, quantized by GPTQ, and print where it is."""
    _check("bits", bits, bits in (4, 8), "4 or 8")
    _check("group_size", group_size, group_size != 0, "-1 or at least 1")
    _check("device", device, device in ("auto", "cpu", "cuda"), "auto, cpu or cuda")
    given = {"bits": bits, "group_size": group_size, "device": device}
    given |= {"act_order": act_order, "symmetric": symmetric, "damp": damp}
    options = msgspec.convert(given, QuantizeOptions)
    texts = CalibrationOptions(calibration, num_samples, max_length)
    path = _pull(model, source, revision, data_dir)
    try:
        quantize(path, output, options, texts, say=lambda line: typer.echo(line, err=True))
    except QuantizeError as exc:
        _fail(exc, 1)
    typer.echo(output)


@app.command("chat")
def chat_command(
    url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="The API, up to and with /v1.")
    ] = "http://127.0.0.1:8000/v1",
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model to ask. [default: the server's first]")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Sent with every query.")] = 1234,
) -> None:
    """Chat in the terminal with any OpenAI-compatible server."""
    with ChatClient(url, api_key) as client:
        try:
            chosen = model or client.first_model()
        except ChatError as exc:
            _fail(exc, 1)
        ChatSession(client, chosen, system=system, seed=seed).run()


if __name__ == "__main__":
    app()
