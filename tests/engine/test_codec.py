"""Frames that no message of ours is in: one kind of error, and both ends go on."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import zmq

from engine import codec
from engine.ipc import IpcClient
from engine.messages import Abort, EngineInfo, Hello
from engine.transport import RouterTransport

HOSTILE = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "half": codec.encode([Hello()])[:-1],
    "no list": b"\x01",
    "an unknown tag": b"\x91\x81\xa4type\xa1x",
    "text that is not UTF-8": b"\x91\x82\xa4type\xa5abort\xa2id\xa1\xff",
    "deep": b"\x91" * 100_000,
    "a long promise": b"\xdd\xff\xff\xff\xff",
}
INFO = EngineInfo(
    max_model_len=1,
    vocab_size=2,
    num_blocks=3,
    block_size=4,
    dtype="a",
    device="b",
    backend="c",
)


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE.keys())
def test_one_kind_of_error(frame: bytes) -> None:
    for decode in (codec.decode_to_engine, codec.decode_from_engine):
        with pytest.raises(msgspec.DecodeError):
            decode(frame)


def test_an_engine_goes_on_behind_them(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/engine"
    transport = RouterTransport(address)
    transport.open(INFO, 1)
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.connect(address)
    try:
        for frame in HOSTILE.values():
            client.send(frame)
        client.send_multipart([b"\xc1", b"two", b"three"])
        client.send(codec.encode([Hello(), Abort("a")]))
        received: list[object] = []
        while not received:
            transport.wait(1.0)
            received += [message for _, message in transport.receive()]
        assert received == [Abort("a")]
        assert codec.decode_from_engine(client.recv())[0] == INFO
    finally:
        client.close(linger=0)
        context.term()
        transport.close()


async def test_a_server_goes_on_behind_them(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/engine"
    context = zmq.Context()
    engine = context.socket(zmq.ROUTER)
    engine.bind(address)
    client = IpcClient(address)
    starting = asyncio.create_task(client.start())
    try:
        name, _ = await asyncio.to_thread(engine.recv_multipart)
        for frame in HOSTILE.values():
            engine.send_multipart([name, frame])
        engine.send_multipart([name, codec.encode([INFO])])
        assert await asyncio.wait_for(starting, 60) == INFO
    finally:
        await client.aclose()
        engine.close(linger=0)
        context.term()
