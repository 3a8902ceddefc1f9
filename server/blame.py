"""Which requests an engine was computing when it died, and how often in a row: the next engine
computes them alone, or refuses them. No torch.

An engine that was ended from outside blames nobody, except by the system for want of memory: what
it was computing may be the reason.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

from engine.journal import Entry

_COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))  # lines "oom_kill N"
_MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Deaths:
    count: int
    num_tokens: int  # that the request had in the last one


class Blame:
    """Of all engines that one supervisor has started, one after the other."""

    def __init__(self) -> None:
        self._deaths: dict[str, _Deaths] = {}
        self._num_oom_kills = num_oom_kills()

    @property
    def suspects(self) -> dict[str, int]:
        """Request id -> engines in a row that died computing it, without a new token between."""
        return {request_id: deaths.count for request_id, deaths in self._deaths.items()}

    def engine_ended(self, exit_status: int | None, entry: Entry, *, has_hung: bool) -> None:
        """Take note of what was being computed. `exit_status`: negative for a signal."""
        before, self._num_oom_kills = self._num_oom_kills, num_oom_kills()
        is_from_outside = exit_status in (-signal.SIGKILL, -signal.SIGTERM, 0)
        if is_from_outside and not has_hung and self._num_oom_kills == before:
            return
        for request_id, num_tokens in entry.step:
            known = self._deaths.pop(request_id, None)
            is_again = known is not None and known.num_tokens == num_tokens
            count = known.count + 1 if known is not None and is_again else 1
            self._deaths[request_id] = _Deaths(count, num_tokens)
        while len(self._deaths) > _MAX_REMEMBERED:
            del self._deaths[next(iter(self._deaths))]


def num_oom_kills() -> int:
    """Processes that the kernel has ended for want of memory, as far as it can be told here."""
    total = 0
    for path in _COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:  # another system
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total
