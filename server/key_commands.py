"""`qwen-serve keys`: new, list and remove, on the keys file (server/key_file.py)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec, TypeVar

import typer

from server.key_file import KeyFileError, add_key, read_keys, remove_key
from server.keys import Key, Limits, Scope
from server.options import ENVIRONMENT_PREFIX

_DEFAULT_FILE = "keys.yaml"

commands = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The keys file of a server."
)

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")

_File = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        metavar="FILE",
        help=f"The file. [default: that of {ENVIRONMENT_PREFIX}KEYS_FILE, or {_DEFAULT_FILE}]",
        show_default=False,
    ),
]
_Name = Annotated[str, typer.Argument(help="The key's name, as in logs and metrics")]


@commands.command("new")
def new_command(
    name: _Name,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="infer|tune|admin|metrics",
            help="What the key is for; give it again for more. [default: infer]",
            show_default=False,
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="[default: no limit]", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt and output. [default: no limit]", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests at a time. [default: no limit]", show_default=False),
    ] = None,
    keys_file: _File = None,
) -> None:
    """Make a key, put its hash into the file and print it: it cannot be shown again."""
    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
    )
    scopes: list[Scope] = scope or ["infer"]  # type: ignore[assignment]  # checked by add_key
    typer.echo(_done(add_key, _path(keys_file), name, scopes, limits))


@commands.command("list")
def list_command(keys_file: _File = None) -> None:
    """Print the names, scopes and limits of the keys."""
    for key in _done(read_keys, _path(keys_file)):
        typer.echo(_line(key))


@commands.command("remove")
def remove_command(name: _Name, keys_file: _File = None) -> None:
    """Take a key out of the file. A running server refuses it within a second or two."""
    _done(remove_key, _path(keys_file), name)


def _path(flag: Path | None) -> Path:
    return (
        flag or Path(os.environ.get(f"{ENVIRONMENT_PREFIX}KEYS_FILE", _DEFAULT_FILE))
    ).expanduser()


def _done(
    function: Callable[Arguments, ResultT], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> ResultT:
    try:
        return function(*args, **kwargs)
    except KeyFileError as exc:
        _fail(exc)


def _fail(exc: KeyFileError) -> NoReturn:
    typer.echo(f"error: {exc}", err=True)
    raise typer.Exit(1)


def _line(key: Key) -> str:
    limits = (
        (key.limits.requests_per_minute, "requests/min"),
        (key.limits.tokens_per_minute, "tokens/min"),
        (key.limits.concurrency, "at a time"),
    )
    shown = ", ".join(f"{number} {unit}" for number, unit in limits if number is not None)
    return f"{key.name}\t{','.join(sorted(key.scopes))}\t{shown or 'no limits'}"
