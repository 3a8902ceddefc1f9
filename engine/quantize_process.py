"""The process that quantizes: `python -m engine.quantize_process`, started by server/quantize.py.

Reads a QuantizeJob from standard input, says on standard output when a layer is done, and ends when
standard input does, which is when its parent is gone.
"""

import os
import sys
import threading

import msgspec

from engine.errors import EngineError
from engine.process import set_thread_policy
from engine.quantize_job import LayerQuantized, QuantizeJob


def main() -> None:
    """Entry point. Exit status 1 with one line `error: ...` on stderr when it cannot be done."""
    job = msgspec.json.decode(sys.stdin.readline(), type=QuantizeJob)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    set_thread_policy()
    from engine.quantize import quantize_checkpoint  # imports torch, which reads the policy

    try:
        quantize_checkpoint(job, _report)
    except (EngineError, OSError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)


def _report(done: LayerQuantized) -> None:
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")
    sys.stdout.flush()


def _exit_with_parent() -> None:
    """Standard input ends when the parent is gone, however it went."""
    while os.read(0, 4096):  # not sys.stdin: its lock would outlive this daemon thread
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
