"""What machine this is, for the reports of measurements. Linux."""

import os
import platform
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The computer that a measurement ran on."""

    cpu: str
    num_cores: int
    memory_bytes: int
    system: str
    python: str

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        return cls(
            cpu=_field(Path("/proc/cpuinfo"), "model name") or platform.processor(),
            num_cores=len(os.sched_getaffinity(0)),
            memory_bytes=int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) * 1024,
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
        )


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
