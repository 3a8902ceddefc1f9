"""The real engine process around a toy model that one prompt kills: `python -m
tests.server.deadly_engine FOLDER`.

Deadly is any sequence with token DEADLY in its prompt once it has said three tokens. Each process
writes its id into FOLDER/engine.PID.
"""

import os
import signal
import sys
from collections.abc import Sequence as ListLike
from pathlib import Path

import msgspec

from engine.journal import Journal
from engine.journaled_runner import JournaledRunner
from engine.process import EngineLoop, ProcessOptions
from engine.results import ChunkResult
from engine.sequence import Chunk
from engine.transport import RouterTransport
from tests.engine.toy_runner import ToyRunner, toy_engine

DEADLY = 7


class DeadlyRunner(ToyRunner):
    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        for chunk in chunks:
            sequence = chunk.sequence
            if DEADLY in sequence.request.prompt_token_ids and sequence.num_output_tokens >= 3:
                os.kill(os.getpid(), signal.SIGSEGV)
        return super().run(chunks)


def main() -> None:
    options = msgspec.json.decode(sys.stdin.readline(), type=ProcessOptions)
    Path(sys.argv[1], f"engine.{os.getpid()}").touch()
    engine, _ = toy_engine(max_model_len=2000, num_blocks=900, max_num_seqs=8)
    engine.info = msgspec.structs.replace(engine.info, vocab_size=49152)
    assert options.journal is not None
    journal = Journal(options.journal)
    engine.runner = JournaledRunner(DeadlyRunner(engine.info.block_size), journal)
    EngineLoop(engine, RouterTransport(options.address), journal, options.suspects).run()


if __name__ == "__main__":
    main()
