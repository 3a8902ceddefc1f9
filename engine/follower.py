"""A rank of a tensor-parallel group that is not rank 0: `python -m engine.follower`.

Loads its part of the model, then computes every step that rank 0 sends over standard input; what
comes of it reaches rank 0 through the collectives. Ends when standard input does.
"""

import logging
import os
import queue
import signal
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from engine.errors import EngineError
from engine.logs import configure_logging
from engine.process import set_thread_policy

if TYPE_CHECKING:
    from engine.kv_cache import KVCache
    from engine.models.decoder import Decoder

logger = logging.getLogger(__name__)

_STOP_S = 5.0


def main() -> None:
    """Entry point. Exit status 1 when the model cannot be loaded or rank 0 is lost."""
    configure_logging()
    set_thread_policy()
    for signum in (signal.SIGINT, signal.SIGTERM):  # rank 0 decides when to stop
        signal.signal(signum, signal.SIG_IGN)
    # these import torch
    from engine.followers import FollowerOptions, join
    from engine.load import load_follower, resolve_device
    from engine.parallel import TensorParallel

    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=FollowerOptions)
    parallel = TensorParallel(options.rank, options.engine.tensor_parallel_size)
    frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, frames), daemon=True).start()
    try:
        join(parallel, options.rendezvous, resolve_device(options.engine.device, parallel))
        decoder, kv_cache = load_follower(options.engine, parallel)
    except EngineError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    compute(options.engine.block_size, decoder, kv_cache, frames)


def compute(
    block_size: int,
    decoder: "Decoder",
    kv_cache: "KVCache",
    frames: "queue.SimpleQueue[bytes | None]",
) -> None:
    """Compute every step until there are no more. Exit status 1 when another rank is lost."""
    import torch

    from engine.batch import Batch, StepInput

    decode = msgspec.msgpack.Decoder(StepInput).decode
    try:
        with torch.inference_mode():
            while (frame := frames.get()) is not None:
                step = decode(frame)
                batch = Batch.of(step, block_size, decoder.device)
                hidden = decoder.forward(batch, kv_cache)
                for rows in step.logits_rows:
                    decoder.compute_logits(hidden[rows])
    except RuntimeError as exc:  # a collective's, most likely
        logger.error("step failed", extra={"fields": {"reason": str(exc)[:300]}})
        sys.exit(1)
    torch.distributed.destroy_process_group()


def _read(stream: BinaryIO, frames: "queue.SimpleQueue[bytes | None]") -> None:
    """Queue what arrives; after the end of the stream this process has _STOP_S to live."""
    while len(header := stream.read(4)) == 4:
        (length,) = struct.unpack("<I", header)
        frames.put(stream.read(length))
    frames.put(None)
    time.sleep(_STOP_S)  # this thread ends with the process
    os._exit(1)  # a collective may wait for rank 0 for ever


if __name__ == "__main__":
    main()
