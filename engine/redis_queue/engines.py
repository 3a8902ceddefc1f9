"""What a server knows of the engines of its queue, from their beats."""

from collections.abc import Mapping

import msgspec

from engine.messages import EngineInfo, EngineStats
from engine.redis_queue import frames
from engine.redis_queue.frames import EngineBeat
from engine.redis_queue.members import Members
from engine.redis_queue.placement import Load

_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks")
_TIMES = ("step_time_s", "model_time_s")
_OF_THEIR_OWN = (*_GAUGES, *_TIMES, "step_sizes")
_COUNTERS = tuple(name for name in EngineStats.__struct_fields__ if name not in _OF_THEIR_OWN)


class Engines:
    """Alive are those whose beats go on, until they say that they leave."""

    def __init__(self) -> None:
        self._members = Members()
        self._beats: dict[str, EngineBeat] = {}
        self._left: set[str] = set()
        self._last: dict[str, EngineStats] = {}  # of all there have been: counters do not fall
        self._total = EngineStats()
        self.info: EngineInfo | None = None  # they are alike: see RedisTransport.open

    @property
    def known(self) -> list[str]:
        return list(self._beats)

    def update(self, beats: Mapping[bytes, bytes]) -> None:
        """The beats as they are in Redis now."""
        decoded: dict[str, EngineBeat] = {}
        for raw_name, raw in beats.items():
            try:
                decoded[raw_name.decode()] = frames.decode_beat(raw)
            except msgspec.DecodeError:
                continue  # of another version: nothing is known of it
        self._members.update({name: beat.number for name, beat in decoded.items()})
        self._beats = decoded
        self._last |= {name: beat.stats for name, beat in decoded.items()}
        for name in self._alive():
            self.info = self.info or decoded[name].info
        self._total = self._add_up()

    def hear(self, name: str) -> None:
        """Something has come from an engine."""
        self._members.hear(name)

    def leave(self, name: str) -> None:
        """An engine has said that it takes nothing any more."""
        self._left.add(name)
        self._total = self._add_up()

    def is_dead(self, name: str) -> bool:
        return name in self._left or self._members.is_dead(name)

    def loads(self) -> dict[str, Load]:
        """Of the engines that are alive."""
        beats = {name: self._beats[name] for name in self._alive()}
        return {name: Load(beat.num_taken, beat.max_num_seqs) for name, beat in beats.items()}

    def total_stats(self) -> EngineStats:
        """Gauges of those that are alive, counters of all there have been, times on average.

        Asked for with each request, so added up when something has changed.
        """
        return self._total

    def _add_up(self) -> EngineStats:
        alive = [self._beats[name].stats for name in self._alive()]
        values: dict[str, object] = {
            name: sum(getattr(stats, name) for stats in alive) for name in _GAUGES
        }
        values |= {
            name: sum(getattr(stats, name) for stats in self._last.values()) for name in _COUNTERS
        }
        values |= {
            name: sum(getattr(stats, name) for stats in alive) / max(len(alive), 1)
            for name in _TIMES
        }
        sizes = [stats.step_sizes for stats in self._last.values()]
        if sizes:
            values["step_sizes"] = [sum(counts) for counts in zip(*sizes, strict=True)]
        return msgspec.convert(values, EngineStats)

    def forget_old(self) -> list[str]:
        """Those who have been dead for so long that their beats may be removed."""
        old = self._members.forgotten()
        self._members.forget(old)
        return old

    def _alive(self) -> list[str]:
        alive = self._members.alive()
        return [name for name in alive if name in self._beats and name not in self._left]
