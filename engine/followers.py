"""The other ranks of a tensor-parallel group, as rank 0 sees them: processes that get every step.

Each is a `python -m engine.follower`, fed over its standard input. Where one ends by itself the
group is of no use, and rank 0 ends too, so that the supervisor starts all of them anew.
"""

import logging
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from engine.batch import StepInput
from engine.config import EngineConfig
from engine.parallel import TensorParallel

logger = logging.getLogger(__name__)

_JOIN_TIMEOUT = timedelta(minutes=30)  # a large model takes its time from a slow disk
_GRACE_S = 1.0
_STOP_S = 5.0


class FollowerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower reads first, on one line of JSON."""

    engine: EngineConfig
    rank: int
    rendezvous: str  # a file in a folder that only this user can read


class Followers:
    """Started processes. `send` must not be called after `close`."""

    def __init__(self, processes: list["subprocess.Popen[bytes]"]) -> None:
        self._processes = processes
        self._is_closing = False
        for rank, process in enumerate(processes, start=1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    @classmethod
    def start(cls, config: EngineConfig, device: torch.device) -> "Followers":
        """Start ranks 1 and up and wait until all have joined the group."""
        size = config.tensor_parallel_size
        with tempfile.TemporaryDirectory(prefix="qwen-serve-ranks-") as folder:
            rendezvous = str(Path(folder, "rendezvous"))
            processes = []
            for rank in range(1, size):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "engine.follower"], stdin=subprocess.PIPE
                )
                options = FollowerOptions(engine=config, rank=rank, rendezvous=rendezvous)
                _write(process, msgspec.json.encode(options) + b"\n")
                processes.append(process)
            followers = cls(processes)
            fields = {"followers": [process.pid for process in processes]}
            logger.info("started tensor-parallel ranks", extra={"fields": fields})
            join(TensorParallel(0, size), rendezvous, device)
        return followers

    def send(self, step: StepInput) -> None:
        """Have every follower compute `step` beside rank 0."""
        data = msgspec.msgpack.encode(step)
        for process in self._processes:
            _write(process, struct.pack("<I", len(data)) + data)

    def lost(self) -> str | None:
        """What to say of a rank that has ended, or is about to be gone."""
        give_up_s = time.monotonic() + _GRACE_S
        while time.monotonic() < give_up_s:
            for rank, process in enumerate(self._processes, start=1):
                if (status := process.poll()) is not None:
                    return f"Tensor-parallel rank {rank} ended with exit status {status}."
            time.sleep(0.01)
        return None

    def close(self) -> None:
        """End the followers and leave the group."""
        self._is_closing = True
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        dist.destroy_process_group()
        for process in self._processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        if self._is_closing:
            return
        # A collective may wait for that rank for ever, so nothing but the end of this process
        # helps. Where this process has noticed by itself it is gone before this.
        time.sleep(_GRACE_S)
        sys.stderr.write(f"error: Tensor-parallel rank {rank} ended with exit status {status}.\n")
        sys.stderr.flush()
        os._exit(1)


def join(parallel: TensorParallel, rendezvous: str, device: torch.device) -> None:
    """Enter the process group of all ranks: NCCL between GPUs, gloo over loopback between CPUs."""
    if device.type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=parallel.rank,
        world_size=parallel.size,
        timeout=_JOIN_TIMEOUT,
    )
    parallel.minimum(0)  # the rendezvous file may go once everybody is here


def _write(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()
