"""CPU time and memory of a tree of processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.processes import (
    Memory,
    PeakMemory,
    StallWatch,
    arguments,
    cpu_s,
    holdings,
    memory,
    stopped,
    tree,
    tree_cpu_s,
)
from tests.waiting import wait_until

MEGABYTE = 1 << 20
# a child that holds memory and computes when it is told to, and ends with its input
CHILD = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    held = b"x" * int(line)
    sum(range(5_000_000))
    print("done", flush=True)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


@contextmanager
def family() -> Iterator[subprocess.Popen[str]]:
    """A parent that waits and a child that answers."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def hold(process: subprocess.Popen[str], num_bytes: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{num_bytes}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_tree_is_a_process_and_its_descendants() -> None:
    with family() as process:
        parent, child = tree(process.pid)
        assert parent == process.pid
        assert parent in tree(os.getpid())
        assert child in tree(os.getpid())


def test_cpu_time_and_memory_of_the_child_count() -> None:
    with family() as process:
        before_s, before = tree_cpu_s(process.pid), memory(process.pid)
        hold(process, 64 * MEGABYTE)
        after_s, after = tree_cpu_s(process.pid), memory(process.pid)
        assert after_s > before_s
        assert 60 * MEGABYTE < after.pss_bytes - before.pss_bytes < 80 * MEGABYTE
        assert 60 * MEGABYTE < after.peak_rss_bytes - before.peak_rss_bytes < 80 * MEGABYTE
        assert 0 < after.pss_bytes <= after.peak_rss_bytes


def test_peaks_stay() -> None:
    assert Memory(1, 5).peak(Memory(2, 3)) == Memory(2, 5)
    with family() as process:
        sampler = PeakMemory(process.pid, interval_s=0.005)
        hold(process, 64 * MEGABYTE)
        hold(process, 0)
        hold(process, 0)
        peak, now = sampler.close(), memory(process.pid)
        assert peak.peak_rss_bytes - now.pss_bytes > 60 * MEGABYTE
        assert peak.pss_bytes >= now.pss_bytes


def test_a_short_run_is_sampled_at_its_end() -> None:
    with family() as process:
        sampler = PeakMemory(process.pid, interval_s=600.0)
        hold(process, 64 * MEGABYTE)
        assert sampler.close().pss_bytes > 64 * MEGABYTE


def test_a_process_that_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert tree(process.pid) == [process.pid]
    assert cpu_s(process.pid) == 0.0
    assert memory(process.pid) == Memory()
    with stopped([process.pid]):
        pass


def test_stopped_processes_go_on_afterwards() -> None:
    with family() as process:
        pids = tree(process.pid)
        with stopped([process.pid]):
            wait_until(lambda: [state(pid) for pid in pids] == ["T", "T"])
        wait_until(lambda: "T" not in [state(pid) for pid in pids])
        hold(process, 1)


def test_a_machine_that_stands_still_is_noticed() -> None:
    code = (
        "import sys, time\n"
        "from loadtest.processes import StallWatch\n"
        "watch = StallWatch(0.01)\n"
        "time.sleep(0.1)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(watch.close())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with stopped([process.pid]):
            time.sleep(1.0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) > 0.5
    assert 0 <= StallWatch().close() < 60


def test_what_one_process_holds() -> None:
    with family() as parent:
        _, child = tree(parent.pid)
        before = holdings(child)
        assert before.num_files >= 3 and before.num_threads == 1
        hold(parent, 64 * MEGABYTE)
        assert holdings(child).num_bytes - before.num_bytes > 60 * MEGABYTE
        assert holdings(parent.pid).num_bytes < 64 * MEGABYTE  # its own alone


def test_what_has_ended_holds_nothing() -> None:
    with family() as parent:
        _, child = tree(parent.pid)
        assert arguments(child)[:2] == [sys.executable, "-c"]
    wait_until(lambda: holdings(child).num_files == 0)
    assert (holdings(child).num_bytes, arguments(child)) == (0, [])
