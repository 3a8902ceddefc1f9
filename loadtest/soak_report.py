"""What a soak has shown: samples of an idle server between rounds of load, and what grows in them.

A line is fitted by the median of the slopes of all pairs (Theil and Sen), which single samples
cannot turn. Knows nothing of servers; loadtest/soak.py fills it.
"""

import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import msgspec

from loadtest.machine import Machine

WARM_UP = 0.3  # of the rounds: caches fill, pools of threads grow to their size
_MIB = 1 << 20
# What growth over all rounds behind the warm-up is taken for noise
_MEMORY_SHARE, _MEMORY_BYTES = 0.02, 6 * _MIB
_MOST_MORE = {"files": 1.0, "threads": 1.0, "tasks": 1.0}


class Sample(msgspec.Struct, frozen=True):
    """An idle server after a round."""

    seconds: float
    num_requests: int
    values: dict[str, float]  # "bytes engine", "files engine", "tasks", ...


class Trend(msgspec.Struct, frozen=True):
    """How a value has changed behind the warm-up."""

    name: str
    first: float
    last: float
    per_1000_requests: float  # of the fitted line
    growth: float  # by the fitted line, from the first sample to the last
    allowed: float

    @property
    def grows(self) -> bool:
        return self.growth > self.allowed

    def line(self) -> str:
        """For people."""
        scale, unit = (_MIB, " MiB") if self.name.startswith("bytes") else (1, "")
        return (
            f"{self.name}: {self.first / scale:.1f} to {self.last / scale:.1f}{unit}, "
            f"{self.per_1000_requests / scale:+.3f}{unit} for 1,000 requests"
            f"{', GROWS' if self.grows else ''}"
        )


class SoakReport(msgspec.Struct, frozen=True):
    """All of a run, as its JSON file has it."""

    command: str
    machine: Machine
    seconds: float
    ended: dict[str, int]  # requests by kind
    num_refused: int
    problems: list[str]
    num_problems: int
    samples: list[Sample]
    trends: list[Trend]

    @property
    def is_well(self) -> bool:
        return not self.num_problems and not any(trend.grows for trend in self.trends)

    def lines(self) -> list[str]:
        """For people."""
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.ended.items()))
        verdict = "nothing grows, nothing failed" if self.is_well else "NOT WELL"
        return [
            f"{self.seconds / 60:.0f} minutes, {sum(self.ended.values())} requests ({kinds})",
            f"refused {self.num_refused}, problems {self.num_problems}",
            *(trend.line() for trend in self.trends),
            *self.problems,
            verdict,
        ]


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Of every value that all samples behind the warm-up have. Empty for fewer than three."""
    settled = samples[int(WARM_UP * len(samples)) :]
    if len(settled) < 3:
        return []
    names = [name for name in settled[0].values if all(name in s.values for s in settled)]
    return [_trend(name, settled) for name in names]


def _trend(name: str, samples: Sequence[Sample]) -> Trend:
    points = [(sample.num_requests, sample.values[name]) for sample in samples]
    slope = statistics.median(
        (after - before) / (last - first)
        for (first, before), (last, after) in combinations(points, 2)
    )
    first, last = points[0][1], points[-1][1]
    allowed = _MOST_MORE.get(name.split()[0], 0.0)
    if name.startswith("bytes"):
        allowed = max(_MEMORY_SHARE * first, _MEMORY_BYTES)
    growth = slope * (points[-1][0] - points[0][0])
    return Trend(name, first, last, 1000 * slope, growth, allowed)


def draw(report: SoakReport, path: Path) -> None:
    """A picture: memory, files and threads, tasks, over the requests. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    panels = (("bytes",), ("files", "threads"), ("tasks", "blocks in use"))
    for axis, kinds, title in zip(
        axes, panels, ("memory, MiB", "files and threads", "tasks and blocks"), strict=True
    ):
        names = [n for n in report.samples[0].values if any(n.startswith(kind) for kind in kinds)]
        for name in names:
            known = [s for s in report.samples if name in s.values]
            scale = _MIB if name.startswith("bytes") else 1
            axis.plot(
                [s.num_requests for s in known],
                [s.values[name] / scale for s in known],
                marker=".",
                label=name.removeprefix("bytes "),
            )
        axis.set_title(title)
        axis.set_xlabel("requests")
        axis.set_ylim(bottom=0)
        if names:
            axis.legend(fontsize="small")
    figure.suptitle("an idle server between rounds of load")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
