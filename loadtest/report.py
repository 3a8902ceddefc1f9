"""The report of a comparison: what was run where, every run, and the summary; JSON, table, picture.

Filled by loadtest/compare.py and loadtest/offline.py.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest import plots
from loadtest.comparison import METRICS, Row, Run, summarize, table
from loadtest.machine import Machine
from loadtest.servers import Recipe


class ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was run; `url` where it ran already."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}
    version: str = ""
    url: str = ""

    @classmethod
    def of(cls, recipe: Recipe) -> "ServerReport":
        """Asks the program for its version."""
        return cls(
            name=recipe.name,
            command=list(recipe.command),
            environment=dict(recipe.environment),
            version=recipe.version(),
            url=recipe.url,
        )


class Report(msgspec.Struct, kw_only=True):
    """All that is known; `servers[0]` is ours."""

    title: str
    machine: Machine
    seed: int
    workloads: dict[str, str]
    servers: list[ServerReport]
    runs: list[Run] = []
    summary: list[Row] = []

    def add(self, run: Run) -> None:
        """Take one more run and print what it gave."""
        self.runs.append(run)
        told = ", ".join(
            f"{metric.title} {run.metrics[metric.name] * metric.scale:.1f} {metric.unit}"
            for metric in METRICS
            if metric.name in run.metrics
        )
        print(f"{run.round + 1}: {run.workload}, {run.server}: {told}", flush=True)
        if run.num_failed:
            print(f"   {run.num_failed} of {run.num_calls} failed: {run.errors}", flush=True)

    def save(self, path: Path) -> None:
        """Summarize what is known and write it."""
        self.summary = summarize(self.runs, self.servers[0].name)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    def tell(self, json_path: Path, plot_path: Path) -> None:
        """Print the table and the failures, and draw the picture where that is possible."""
        print("", *table(self.summary), "", sep="\n")
        for server in self.servers:
            own = [run for run in self.runs if run.server == server.name]
            version = f" ({server.version})" if server.version else ""
            print(f"{server.name}{version}: {_failures(own)}")
        print(f"wrote {json_path}")
        if not plots.can_draw():
            print("no picture: matplotlib is not installed (pip install 'qwen-serve[bench]')")
        elif self.summary:
            plots.draw(plots.Plotted(self.title, self.summary), plot_path)
            print(f"wrote {plot_path}")


def _failures(runs: Sequence[Run]) -> str:
    num_failed = sum(run.num_failed for run in runs)
    return f"{num_failed} of {sum(run.num_calls for run in runs)} requests failed"
