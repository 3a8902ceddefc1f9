"""server/keys.py: what finds a key, and what does not."""

import pytest

from server.keys import ALL_SCOPES, Key, KeyRing, digest_of


def key(name: str, secret: str) -> Key:
    return Key(name=name, digest=digest_of(secret.encode()), scopes=ALL_SCOPES)


def test_a_key_is_found_by_its_secret_alone() -> None:
    ring = KeyRing([key(f"k{i}", f"sk-{i}") for i in range(100)])
    found = ring.find(b"sk-42")
    assert found is not None and found.name == "k42"
    for secret in (b"sk-100", b"sk-4 ", b"", b"k42", digest_of(b"sk-42"), b"SK-42"):
        assert ring.find(secret) is None


@pytest.mark.parametrize(
    ("user", "password", "name"),
    [
        (b"alice", b"sk-1", "alice"),
        (b"bob", b"sk-1", None),
        (b"alice", b"sk-2", None),
        (b"admin", b"pass:word", "admin"),
        (b"admin:pass", b"word", "admin"),  # the same pair, as Basic auth has no escape
        (b"admin", b"pass", None),
        (b"", b"sk-1", None),
    ],
)
def test_basic_auth_takes_users_and_keys_by_name(
    user: bytes, password: bytes, name: str | None
) -> None:
    ring = KeyRing([key("alice", "sk-1")], [key("admin", "admin:pass:word")])
    found = ring.find_by_name(user, password)
    assert (found and found.name) == name


def test_a_password_is_no_key() -> None:
    ring = KeyRing([], [key("admin", "admin:word")])
    assert ring.find(b"word") is None
    assert ring.find(b"admin:word") is None


def test_replacing_leaves_the_keys_of_the_options() -> None:
    ring = KeyRing([key("option", "sk-0")], [key("admin", "admin:word")])
    ring.replace([key("a", "sk-1")])
    ring.replace([key("b", "sk-2")])
    assert [ring.find(secret) is not None for secret in (b"sk-0", b"sk-1", b"sk-2")] == [
        True,
        False,
        True,
    ]
    assert ring.find_by_name(b"admin", b"word") is not None
