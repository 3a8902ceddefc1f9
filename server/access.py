"""Who may use a server process, and how much: keys of the options and of the keys file, which may
change, and where their limits are counted.

Opened by the command, to refuse what is wrong before anything is loaded, and by every worker.
"""

import asyncio
from pathlib import Path

from server.config import ServerConfig
from server.file_watch import changes, version_of
from server.key_file import KeyFileError, read_keys
from server.keys import ALL_SCOPES, NO_LIMITS, Key, KeyRing, digest_of
from server.limit_store import LimitStore, MemoryLimits
from server.logging import get_logger

_log = get_logger(__name__)


class Access:
    """Who may use a server.

    Attributes:
        keys: None where no key is asked for.
        limits: where the limits of keys are counted.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Raises KeyFileError."""
        self.keys: KeyRing | None = None
        self.limits: LimitStore = MemoryLimits()
        store = config.limits_store or config.queue  # other servers use that queue, too
        if store is not None:
            from server.redis_limits import RedisLimits  # its import takes a while

            self.limits = RedisLimits(store)
        self._counts_alone = store is None and config.workers > 1
        self._path = Path(config.keys_file).expanduser() if config.keys_file else None
        self._version = version_of(self._path) if self._path else ()
        if config.asks_for_keys:
            self.keys = KeyRing(_given_keys(config), _passwords(config))
            self._load()

    def _load(self) -> int:
        """Take the keys that are in the file now; return how many. Raises KeyFileError."""
        if self._path is None:
            return 0
        assert self.keys is not None
        keys = read_keys(self._path)
        limited = next((key.name for key in keys if key.limits != NO_LIMITS), None)
        if limited is not None and self._counts_alone:
            raise KeyFileError(
                f"the keys file {self._path} limits the key {limited}: with several workers that "
                "needs --limits-store, where they count together"
            )
        self.keys.replace(keys)
        return len(keys)

    async def watch(self) -> None:
        """Take the file's keys whenever it changes, for ever. A bad file changes nothing."""
        if self._path is None:
            return
        async for _ in changes(self._path, since=self._version):
            try:
                count = await asyncio.to_thread(self._load)
            except KeyFileError as exc:
                _log.error("the keys stay as they were", reason=str(exc))
            else:
                _log.info("keys read again", count=count)


def _given_keys(config: ServerConfig) -> list[Key]:
    """Keys of the options: of whoever runs the server, who may do anything."""
    return [
        Key(name=f"api-key-{i}", digest=digest_of(secret.encode()), scopes=ALL_SCOPES)
        for i, secret in enumerate(config.api_keys, start=1)
    ]


def _passwords(config: ServerConfig) -> list[Key]:
    return [
        Key(name=pair.partition(":")[0], digest=digest_of(pair.encode()), scopes=ALL_SCOPES)
        for pair in config.basic_auth
    ]
