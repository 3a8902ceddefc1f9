"""What a server's processes take: CPU time and memory of a whole process tree, read from /proc;
and what disturbs a measurement.

Linux only. Knows nothing of servers; loadtest/servers.py and the load generators ask it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of all processes of a tree.

    PSS divides a page among the processes that map it. RSS counts it once for each of them, and is
    the peak that the kernel has kept for each process since its start.
    """

    pss_bytes: int = 0
    peak_rss_bytes: int = 0

    def peak(self, other: "Memory") -> "Memory":
        """The larger of each."""
        return Memory(
            max(self.pss_bytes, other.pss_bytes), max(self.peak_rss_bytes, other.peak_rss_bytes)
        )


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants that still run."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # grows meanwhile
        found += children.get(parent, [])
    return found


def cpu_s(pid: int) -> float:
    """User and system time of one process so far, 0 when it has ended."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS if fields else 0.0


def tree_cpu_s(pid: int) -> float:
    """User and system time so far of the processes that run now in the tree under `pid`."""
    return sum(map(cpu_s, tree(pid)))


def memory(pid: int) -> Memory:
    """What the tree under `pid` holds."""
    processes = tree(pid)
    return Memory(sum(map(_pss_bytes, processes)), sum(map(_peak_rss_bytes, processes)))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one process holds now; zeros when it has ended.

    Bytes are of pages that are its own: what it maps of files, such as weights, is not counted, as
    that is the kernel's to drop, and is shared with whoever else maps it.
    """

    num_bytes: int = 0
    num_files: int = 0
    num_threads: int = 0


def holdings(pid: int) -> Holdings:
    """Of one process, not of its children."""
    try:
        num_files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return Holdings()
    fields = _stat(pid)
    num_kilobytes = sum(_kilobytes(pid, "status", name) for name in ("RssAnon", "RssShmem"))
    return Holdings(1024 * num_kilobytes, num_files, int(fields[17]) if fields else 0)


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended. Source: proc_pid_cmdline(5)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Hold the trees under `pids` by SIGSTOP until the block ends."""
    processes = [process for pid in pids for process in tree(pid)]
    try:
        _signal(processes, signal.SIGSTOP)
        yield
    finally:
        _signal(processes, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, number)


class PeakMemory:
    """Samples the memory of a tree in a thread of its own until it is closed.

    Reading PSS walks the page tables, some ten milliseconds for each GB, so it is not done often.
    """

    def __init__(self, pid: int, interval_s: float = 2.0) -> None:
        self._pid = pid
        self._interval_s = interval_s
        self._peak = Memory()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> Memory:
        """Sample once more, stop, and return the peak."""
        self._closed.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closed.wait(self._interval_s)
            self._peak = self._peak.peak(memory(self._pid))


class StallWatch:
    """Notices when the machine as a whole stands still, as virtual ones sometimes do for seconds.

    A thread that only sleeps measures by how much it wakes too late.
    """

    def __init__(self, interval_s: float = 0.05) -> None:
        self._interval_s = interval_s
        self._longest_s = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> float:
        """Stop, and return the longest delay in seconds."""
        self._closed.set()
        self._thread.join()
        return self._longest_s

    def _watch(self) -> None:
        before = time.perf_counter()
        is_closed = False
        while not is_closed:  # once more at the end: it may have woken too late for the last time
            is_closed = self._closed.wait(self._interval_s)
            now = time.perf_counter()
            self._longest_s = max(self._longest_s, now - before - self._interval_s)
            before = now


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, so [1] is the parent; empty when it has ended.

    Source: proc_pid_stat(5).
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _pss_bytes(pid: int) -> int:
    return _kilobytes(pid, "smaps_rollup", "Pss") * 1024


def _peak_rss_bytes(pid: int) -> int:
    return _kilobytes(pid, "status", "VmHWM") * 1024


def _kilobytes(pid: int, file: str, name: str) -> int:
    """A line of a file under /proc/PID, 0 when it has ended. Source: proc_pid_smaps(5), status."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
