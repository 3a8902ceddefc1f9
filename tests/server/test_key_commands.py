"""`qwen-serve keys`, as it is typed."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import cli
from server.key_file import read_keys
from server.keys import KeyRing, Limits


def test_new_list_remove(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    runner = CliRunner(env={"QWEN_SERVE_KEYS_FILE": str(file)})
    flags = ["--scope", "infer", "--scope", "metrics", "--requests-per-minute", "60"]
    flags += ["--tokens-per-minute", "9000", "--concurrency", "4"]
    made = runner.invoke(cli.app, ["keys", "new", "alice", *flags])
    assert made.exit_code == 0, made.output
    key = KeyRing(read_keys(file)).find(made.stdout.strip().encode())
    assert key is not None and key.scopes == {"infer", "metrics"}
    assert key.limits == Limits(requests_per_minute=60, tokens_per_minute=9000, concurrency=4)
    assert runner.invoke(cli.app, ["keys", "new", "bob"]).exit_code == 0
    listed = runner.invoke(cli.app, ["keys", "list"]).stdout.splitlines()
    assert listed == [
        "alice\tinfer,metrics\t60 requests/min, 9000 tokens/min, 4 at a time",
        "bob\tinfer\tno limits",
    ]
    assert runner.invoke(cli.app, ["keys", "remove", "alice"]).exit_code == 0
    other = tmp_path / "other.yaml"
    assert runner.invoke(cli.app, ["keys", "list", "--keys-file", str(other)]).exit_code == 1
    assert [key.name for key in read_keys(file)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "a b"], ("error: no such key can be", "$.name")),
        (["new", "a", "--scope", "infr"], ("error: no such key can be", "'infr'")),
        (["new", "bob"], ("has a key named bob",)),
        (["remove", "nobody"], ("no key named nobody",)),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    runner = CliRunner(env={"QWEN_SERVE_KEYS_FILE": str(tmp_path / "keys.yaml")})
    assert runner.invoke(cli.app, ["keys", "new", "bob"]).exit_code == 0
    result = runner.invoke(cli.app, ["keys", *arguments])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_limit_that_cannot_be(tmp_path: Path, count: str) -> None:
    runner = CliRunner(env={"QWEN_SERVE_KEYS_FILE": str(tmp_path / "keys.yaml")})
    result = runner.invoke(cli.app, ["keys", "new", "a", "--concurrency", count])
    assert result.exit_code == 2
    assert not (tmp_path / "keys.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keys-file", "/missing.yaml"], ("/missing.yaml cannot be read",)),
        (["--basic-auth", "secretword"], ("basic_auth", "USER:PASSWORD", "(hidden)")),
    ],
)
def test_serve_says_what_is_wrong_with_its_keys(flags: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--port", "0", *flags])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert "secretword" not in result.stderr


def test_serve_refuses_several_workers_that_would_count_alone(tmp_path: Path) -> None:
    runner, file = CliRunner(), tmp_path / "keys.yaml"
    new = ["keys", "new", "alice", "--concurrency", "1", "--keys-file", str(file)]
    assert runner.invoke(cli.app, new).exit_code == 0
    flags = ["serve", "--port", "0", "--workers", "2", "--keys-file", str(file)]
    result = runner.invoke(cli.app, flags)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and "--limits-store" in result.stderr
