"""Which kind of queue an address means, seen from a server. Torch-free."""

from engine.client import EngineClient
from engine.ipc import IpcClient
from engine.redis_queue.names import is_redis


def client_at(address: str) -> EngineClient:
    """The server's end of the queue: ipc://... or what names.join_address has made."""
    if not is_redis(address):
        return IpcClient(address)
    from engine.redis_queue.client import RedisClient  # its library takes a while to import

    return RedisClient(address)
