"""A picture of step times: `python -m loadtest.grid_plot GRID.json PICTURE.png`.

GRID.json is what `python -m engine.bench_batched --grid --json` writes. Milliseconds of a decode
step over the number of sequences, a line for each context, both axes logarithmic. Needs matplotlib,
of the optional `bench` dependencies.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Steps(msgspec.Struct, frozen=True):
    """Of one model: a context's list has a time for each number of sequences, or none."""

    sequences: list[int]
    by_context: dict[str, list[float | None]]


class Grid(msgspec.Struct, frozen=True):
    """What of the file is drawn."""

    model: str
    step_ms: Steps


def draw(grid: Grid, path: Path) -> None:
    """Write the picture to `path`. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.0, 4.5), layout="constrained")
    for context, times in grid.step_ms.by_context.items():
        known = [
            (n, ms) for n, ms in zip(grid.step_ms.sequences, times, strict=True) if ms is not None
        ]
        axis.plot(*zip(*known, strict=True), marker="o", label=f"{context} tokens of context")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(grid.step_ms.sequences, [str(n) for n in grid.step_ms.sequences])
    axis.set_xlabel("sequences")
    axis.set_ylabel("milliseconds a decode step")
    axis.set_title(Path(grid.model).name)
    axis.grid(visible=True, which="both", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="loadtest.grid_plot", description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args(argv)
    draw(msgspec.json.decode(args.grid.read_bytes(), type=Grid), args.picture)


if __name__ == "__main__":
    main()
