"""A real engine process around the toy model: `python -m tests.engine.toy_process ADDRESS DELAY_S
[MAX_MODEL_LEN]`. Ends well on SIGTERM.
"""

import signal
import sys
import time
from collections.abc import Sequence as ListLike

from engine.errors import EngineError
from engine.process import EngineLoop
from engine.results import ChunkResult
from engine.sequence import Chunk
from engine.transport import transport_at
from tests.engine.toy_runner import ToyRunner, toy_engine


class SlowToyRunner(ToyRunner):
    """A toy that takes its time, and fails a step that computes token 13."""

    def __init__(self, block_size: int, delay_s: float) -> None:
        super().__init__(block_size)
        self.delay_s = delay_s

    def run(self, chunks: ListLike[Chunk]) -> list[ChunkResult]:
        time.sleep(self.delay_s)
        if any(13 in chunk.sequence.request.prompt_token_ids for chunk in chunks):
            raise RuntimeError("the device is on fire")
        return super().run(chunks)


def main() -> None:
    address, delay_s = sys.argv[1], float(sys.argv[2])
    max_model_len = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    engine, _ = toy_engine(max_model_len=max_model_len, num_blocks=600)
    engine.runner = SlowToyRunner(engine.info.block_size, delay_s)
    transport = transport_at(address)
    loop = EngineLoop(engine, transport)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    try:
        loop.run()
    except EngineError as exc:
        sys.exit(f"error: {exc}")
    transport.close()


if __name__ == "__main__":
    main()
