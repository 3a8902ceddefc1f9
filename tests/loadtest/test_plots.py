"""The picture of a comparison is drawn, by the command and from the file it wrote."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from loadtest.comparison import Row
from loadtest.plots import Plotted, can_draw, draw

needs_matplotlib = pytest.mark.skipif(not can_draw(), reason="matplotlib is optional")
PNG = b"\x89PNG"


def row(server: str, workload: str, metric: str, value: float) -> Row:
    return Row(
        workload=workload,
        metric=metric,
        server=server,
        num_rounds=2,
        median=value,
        least=value / 2,
        most=value * 2,
    )


def plotted() -> Plotted:
    rows = [
        row("ours", "decode-1", "output_tokens_per_s", 10.0),
        row("theirs", "decode-1", "output_tokens_per_s", 20.0),
        row("theirs", "decode-8", "output_tokens_per_s", 20.0),  # ours has none
        row("ours", "memory", "peak_pss_bytes", 1e9),
    ]
    return Plotted("model, machine", rows)


@needs_matplotlib
def test_draws(tmp_path: Path) -> None:
    draw(plotted(), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


@needs_matplotlib
def test_draws_a_report_again(tmp_path: Path) -> None:
    report = {**msgspec.to_builtins(plotted()), "seed": 0}  # a report has more than is drawn
    (tmp_path / "in.json").write_bytes(msgspec.json.encode(report))
    command = [sys.executable, "-m", "loadtest.plots", "in.json", "out.png"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_without_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['plots', 'in.json', 'out.png']\n"
        "from loadtest import plots; plots.can_draw = lambda: False; plots.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "qwen-serve[bench]" in run.stderr
