"""A picture of a comparison: `python -m loadtest.plots FILE.json PICTURE.png`.

One panel for each metric, in it the workloads, and for each the servers side by side; bars are
medians over the rounds, lines reach from the least to the most. Needs matplotlib, of the optional
`bench` dependencies; loadtest.compare goes without where it is missing.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from loadtest.comparison import METRICS, Metric, Row

_COLUMNS = 3
_PANEL_INCHES = (5.2, 3.4)


class Plotted(msgspec.Struct, frozen=True):
    """What of a report's file is drawn."""

    title: str
    summary: list[Row]


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(report: Plotted, path: Path) -> None:
    """Write the picture to `path`. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (metric, rows)
        for metric in METRICS
        if (rows := [row for row in report.summary if row.metric == metric.name])
    ]
    num_lines = -(-len(panels) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure, axes = pyplot.subplots(
        num_lines,
        _COLUMNS,
        figsize=(width * _COLUMNS, height * num_lines),
        squeeze=False,
        layout="constrained",
    )
    servers = list(dict.fromkeys(row.server for row in report.summary))
    for axis, (metric, rows) in zip(axes.flat, panels, strict=False):
        _panel(axis, metric, rows, servers)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(servers))
    figure.suptitle(report.title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axis: Any, metric: Metric, rows: Sequence[Row], servers: Sequence[str]) -> None:
    workloads = list(dict.fromkeys(row.workload for row in rows))
    bar_width = 0.8 / len(servers)
    for i, server in enumerate(servers):
        cells = {row.workload: row for row in rows if row.server == server}
        places = [w + (i - (len(servers) - 1) / 2) * bar_width for w in range(len(workloads))]
        known = [(x, cells[w]) for x, w in zip(places, workloads, strict=True) if w in cells]
        scaled = [
            (x, row.median * metric.scale, row.least * metric.scale, row.most * metric.scale)
            for x, row in known
        ]
        axis.bar(
            [x for x, *_ in scaled],
            [median for _, median, *_ in scaled],
            bar_width,
            label=server,
            yerr=[
                [median - least for _, median, least, _ in scaled],
                [most - median for _, median, _, most in scaled],
            ],
            capsize=2,
        )
    axis.set_xticks(range(len(workloads)), workloads)
    better = "higher" if metric.is_higher_better else "lower"
    axis.set_title(f"{metric.title} ({better} is better)", fontsize=10)
    axis.set_ylabel(metric.unit)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.plots", description=__doc__)
    parser.add_argument("report", type=Path, help="the JSON that loadtest.compare wrote")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    if not can_draw():
        raise SystemExit("matplotlib is not installed: pip install 'qwen-serve[bench]'")
    draw(msgspec.json.decode(args.report.read_bytes(), type=Plotted), args.picture)


if __name__ == "__main__":
    main()
