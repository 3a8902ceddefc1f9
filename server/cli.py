"""The `qwen-serve` command: serve, pull and chat.

Turns flags into calls and errors into one line and an exit status: 2 for a bad option, 1 for
anything that failed. The options of `serve` come from server/options.py.
"""

import inspect
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from server.chat_client import ChatClient, ChatError
from server.chat_session import ChatSession
from server.config import ServeConfig, Source
from server.logging import configure
from server.options import EMBEDDED_MODEL, OPTIONS, Option
from server.pull import default_name, pull
from server.pull_error import PullError
from server.settings import SettingsError, resolve, resolve_data_dir
from server.supervisor import StartError, listen
from server.supervisor import serve as supervise

app = typer.Typer(
    name="qwen-serve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _fail(message: object, status: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


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


def _serve_command(**flags: str | bool | Sequence[str] | None) -> None:
    try:
        config = resolve(flags, os.environ)
    except SettingsError as exc:
        _fail(exc, 2)
    configure(config.server.log_format)
    try:
        status = _serve(config)
    except (PullError, StartError) as exc:
        _fail(exc, 1)
    raise typer.Exit(status)


def _serve(config: ServeConfig) -> int:
    # The port first: to find it taken after a download or a model load would waste minutes.
    with listen(config.server.host, config.server.port) as listener:
        path = pull(
            config.engine.model,
            Path(config.data_dir),
            source=config.source,
            revision=config.revision,
        )
        names = config.server.served_model_names or (default_name(config.engine.model, path),)
        replace = msgspec.structs.replace
        config = replace(
            config,
            server=replace(config.server, served_model_names=names),
            engine=replace(config.engine, model=os.path.abspath(path)),
        )
        return supervise(config, listener)


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


# Typer reads a command's options from its signature: this one is made from the list.
_serve_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_parameter(option) for option in OPTIONS]
)
app.command(
    "serve",
    help="Serve a model on an OpenAI-compatible HTTP API. Every option can also be set by an "
    "environment variable (QWEN_SERVE_PORT for --port) or in a file (--config): a flag wins over "
    "the environment, and that over the file.",
)(_serve_command)


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
    sources: dict[str, Source] = {"huggingface": "huggingface", "modelscope": "modelscope"}
    if source not in sources:
        _fail(
            f"bad value {source!r} for source (from --source): it must be huggingface or "
            "modelscope",
            2,
        )
    folder = resolve_data_dir(data_dir, os.environ)
    try:
        path = pull(name, folder, source=sources[source], revision=revision, refresh=True)
    except PullError as exc:
        _fail(exc, 1)
    typer.echo(path)


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
