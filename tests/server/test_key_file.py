"""server/key_file.py: what is read, what is refused, and that writing loses nothing."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from server.key_file import KeyFileError, add_key, read_keys, remove_key
from server.keys import Key, KeyRing, Limits, digest_of

HASH = "sha256:" + digest_of(b"sk-1").hex()
ENTRY = f"- {{name: a, hash: '{HASH}', scopes: [infer]}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_new_key_is_found_by_what_was_printed_and_is_not_in_the_file(path: Path) -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=1000, concurrency=2)
    secret = add_key(path, "alice", ["infer", "metrics", "infer"], limits)
    other = add_key(path, "bob", ["admin"], Limits())
    assert secret.startswith("sk-") and len(secret) > 40 and secret != other
    alice, bob = read_keys(path)
    assert alice == Key(
        name="alice",
        digest=digest_of(secret.encode()),
        scopes=frozenset({"infer", "metrics"}),
        limits=limits,
    )
    assert (bob.name, bob.limits) == ("bob", Limits())
    assert KeyRing([alice, bob]).find(other.encode()) == bob
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_removing_leaves_the_others(path: Path) -> None:
    for name in ("a", "b", "c"):
        add_key(path, name, ["infer"], Limits())
    for name, left in (("b", ["a", "c"]), ("a", ["c"]), ("c", [])):
        remove_key(path, name)
        assert [key.name for key in read_keys(path)] == left
    add_key(path, "d", ["infer"], Limits())
    assert [key.name for key in read_keys(path)] == ["d"]


@pytest.mark.parametrize("indentation", ["", "  ", "    "])
@pytest.mark.parametrize("end", ["\n", "", "\n\n"])
def test_adding_keeps_comments_and_form(path: Path, indentation: str, end: str) -> None:
    text = f"# ours\nkeys:\n{indentation}# the first\n{indentation}{ENTRY.rstrip()}{end}"
    path.write_text(text)
    path.chmod(0o640)
    add_key(path, "b", ["infer"], Limits(concurrency=1))
    assert path.read_text().startswith(text.rstrip())
    assert [key.name for key in read_keys(path)] == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_would_lose_something_is_refused(path: Path) -> None:
    path.write_text(f"keys:  # ours\n{ENTRY}")
    with pytest.raises(KeyFileError, match="has comments, which would be lost"):
        remove_key(path, "a")
    assert path.read_text() == f"keys:  # ours\n{ENTRY}"
    flow = f"keys: [{{name: a, hash: '{HASH}', scopes: [infer]}}]\n"
    path.write_text(flow)
    with pytest.raises(KeyFileError, match="written in a way that cannot be changed here"):
        add_key(path, "b", ["infer"], Limits())
    assert path.read_text() == flow


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    add_key(path, "a", ["infer"], Limits())
    link.symlink_to(path)
    add_key(link, "b", ["infer"], Limits())
    assert link.is_symlink()
    assert [key.name for key in read_keys(path)] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "keys:\n" + ENTRY[:0] + "  []\n", "{}"])
def test_a_file_without_keys(path: Path, text: str) -> None:
    path.write_text(text)
    assert read_keys(path) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: 3", ("array", "$.keys")),
        ("key: []", ("unknown field `key`",)),
        ("- a", ("object", "array")),
        ("keys: [", ("not valid",)),
        ("keys: !!python/object/apply:os.system [ls]", ("not valid",)),
        (f"keys:\n- {{name: a, hash: '{HASH}'}}", ("scopes", "the key 'a'")),
        (f"keys:\n- {{name: a, hash: '{HASH}', scopes: []}}", ("length >= 1", "'a'")),
        (f"keys:\n- {{name: a, hash: '{HASH}', scopes: [infr]}}", ("'infr'", "'a'")),
        ("keys:\n- {name: a, hash: 'sk-plain', scopes: [infer]}", ("sha256", "'a'")),
        (f"keys:\n- {{name: a b, hash: '{HASH}', scopes: [infer]}}", ("$.keys[0].name",)),
        (f"keys:\n- {{name: \"a\\n\", hash: '{HASH}', scopes: [infer]}}", ("name",)),
        (f"keys:\n- {{name: 12, hash: '{HASH}', scopes: [infer]}}", ("`str`, got `int`",)),
        (
            f"keys:\n- {{name: a, hash: '{HASH}', scopes: [infer], concurrency: 0}}",
            (">= 1", "concurrency", "'a'"),
        ),
        (
            f"keys:\n- {{name: a, hash: '{HASH}', scopes: [infer], rpm: 5}}",
            ("unknown field `rpm`", "'a'"),
        ),
        (f"keys:\n{ENTRY}{ENTRY}", ("two keys of the name a",)),
        (f"keys:\n{ENTRY}{ENTRY.replace('name: a', 'name: b')}", ("two keys of the hash",)),
    ],
)
def test_a_bad_file_is_one_line(path: Path, text: str, words: tuple[str, ...]) -> None:
    path.write_text(text)
    with pytest.raises(KeyFileError) as caught:
        read_keys(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert all(word in message for word in words), message
    assert "sk-plain" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"keys: \xff")
    (tmp_path / "keys.toml").write_text("")
    for name, word in (
        ("no.yaml", "No such file"),
        ("latin.yaml", "not valid"),
        ("keys.toml", "must end in .yaml"),
    ):
        with pytest.raises(KeyFileError, match=word):
            read_keys(tmp_path / name)


@pytest.mark.parametrize("name", ["", "a b", "-a", "ключ", "a\n", "x" * 65, "a"])
def test_names_that_cannot_be(path: Path, name: str) -> None:
    add_key(path, "a", ["infer"], Limits())
    before = path.read_text()
    with pytest.raises(KeyFileError):
        add_key(path, name, ["infer"], Limits())
    assert path.read_text() == before


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be written"):
        add_key(tmp_path / "missing" / "keys.yaml", "a", ["infer"], Limits())


def test_two_writers_at_once_lose_nothing(path: Path) -> None:
    names = [f"key-{i}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_key(path, name, ["infer"], Limits()), names))
        list(pool.map(lambda name: remove_key(path, name), names[:10]))
    assert sorted(key.name for key in read_keys(path)) == sorted(names[10:])


@pytest.mark.parametrize("name", ["yes", "1e3", "123", "null"])
def test_a_name_that_yaml_would_take_for_something_else(path: Path, name: str) -> None:
    add_key(path, name, ["infer"], Limits())
    add_key(path, "b", ["infer"], Limits())
    assert [key.name for key in read_keys(path)] == [name, "b"]
    assert yaml.safe_load(path.read_text())["keys"][0]["name"] == name
