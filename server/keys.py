"""API keys: their names, scopes and limits, and how one that comes with a request is found.

Knows no file (server/key_file.py) and no HTTP (server/auth.py).
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Literal

import msgspec

Scope = Literal["infer", "tune", "admin", "metrics"]
ALL_SCOPES: frozenset[Scope] = frozenset({"infer", "tune", "admin", "metrics"})


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key may use. None = no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and output together
    concurrency: int | None = None  # requests at a time


NO_LIMITS = Limits()


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key; the secret itself is nowhere but with its owner."""

    name: str
    digest: bytes  # SHA-256 of the secret
    scopes: frozenset[Scope]
    limits: Limits = NO_LIMITS


def digest_of(secret: bytes) -> bytes:
    """Return what is stored in place of a key. A key has 256 random bits: nothing slower is needed.

    A word that a person has thought up would be found by trying words.
    """
    return hashlib.sha256(secret).digest()


class KeyRing:
    """The keys of one server process.

    They are looked up in a dictionary, whose comparisons take longer the more bytes fit. What they
    compare is made with a random key of this process, so their time tells nothing about a digest.
    """

    def __init__(self, keys: Iterable[Key] = (), passwords: Iterable[Key] = ()) -> None:
        """`passwords`: the secret of these is "user:password"; they are good for Basic only."""
        self._blinding = secrets.token_bytes(32)
        self._passwords = self._indexed(passwords)
        self._fixed = tuple(keys)
        self._keys = self._indexed(self._fixed)

    def replace(self, keys: Iterable[Key]) -> None:
        """Take `keys` in place of those of an earlier call; those of the constructor stay."""
        self._keys = self._indexed((*self._fixed, *keys))

    def find(self, secret: bytes) -> Key | None:
        """Return the key whose secret this is."""
        return self._look_up(self._keys, secret)

    def find_by_name(self, user: bytes, password: bytes) -> Key | None:
        """Return what Basic auth names: a user with a password, or a key by its name and secret."""
        found = self._look_up(self._passwords, user + b":" + password)
        if found is not None:
            return found
        key = self.find(password)
        return key if key is not None and key.name.encode() == user else None

    def _indexed(self, keys: Iterable[Key]) -> dict[bytes, Key]:
        return {self._blind(key.digest): key for key in keys}

    def _look_up(self, keys: dict[bytes, Key], secret: bytes) -> Key | None:
        digest = digest_of(secret)
        key = keys.get(self._blind(digest))
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        return key

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._blinding, digest, "sha256")
