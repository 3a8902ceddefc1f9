"""What a queue is called in Redis."""

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

SCHEMES = ("redis", "rediss", "unix")
GROUP = "engines"


def is_redis(address: str) -> bool:
    return urlsplit(address).scheme in SCHEMES


def join_address(url: str, queue_name: str) -> str:
    """One text for both; the name is the fragment, which no Redis URL has."""
    return f"{url}#{queue_name}"


def split_address(address: str) -> tuple[str, "Names"]:
    """The URL of the Redis server, and the names of the queue's keys there."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(fragment="")), Names(parts.fragment)


@dataclass(frozen=True, slots=True)
class Names:
    """Keys of the queue `queue_name`."""

    queue_name: str

    def _key(self, *parts: str) -> str:
        # in braces: what a Redis cluster keeps on one node
        return ":".join((f"qwen-serve:{{{self.queue_name}}}", *parts))

    @property
    def waiting(self) -> str:
        """Stream of requests that any engine may take (Submission), read by the group GROUP."""
        return self._key("waiting")

    @property
    def engines(self) -> str:
        """Hash: engine -> EngineBeat."""
        return self._key("engines")

    @property
    def servers(self) -> str:
        """Hash: server -> a number that grows."""
        return self._key("servers")

    def to_engine(self, engine: str) -> str:
        """Stream of what one engine is to do (Submission, Withdrawal)."""
        return self._key("to-engine", engine)

    def to_server(self, server: str) -> str:
        """Stream of what one server is told (Report)."""
        return self._key("to-server", server)

    def prefix(self, digest: str) -> str:
        """Which engine has computed a prompt that begins so, for a while."""
        return self._key("prefix", digest)
