"""Figures of compared servers: from answers to metrics, medians, ratios and a table. No I/O.

A run is one workload on one server in one round. Ratios are ours over theirs within a round, so
that what else the machine did in that round falls on both; the median and both ends are shown.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from loadtest.client import Answer
from loadtest.processes import Memory
from loadtest.workloads import Call, Tag

_TAGS: tuple[Tag, ...] = ("miss", "hit")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a run. It is shown multiplied by `scale`, in `unit`."""

    name: str
    title: str
    unit: str
    scale: float = 1.0
    is_higher_better: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("output_tokens_per_s", "output", "tokens/s", is_higher_better=True),
    Metric("prompt_tokens_per_s", "prefill", "tokens/s", is_higher_better=True),
    Metric("ttft_p50_s", "time to first token, p50", "ms", 1000),
    Metric("ttft_p99_s", "time to first token, p99", "ms", 1000),
    Metric("ttft_miss_s", "time to first token, new prefix", "ms", 1000),
    Metric("ttft_hit_s", "time to first token, known prefix", "ms", 1000),
    Metric("itl_mean_s", "between tokens, mean", "ms", 1000),
    Metric("itl_p50_s", "between tokens, p50", "ms", 1000),
    Metric("itl_p99_s", "between tokens, p99", "ms", 1000),
    Metric("ready_s", "command to ready", "s"),
    Metric("first_token_s", "command to first token", "s"),
    Metric("peak_pss_bytes", "peak PSS", "MB", 1e-6),
    Metric("peak_rss_bytes", "peak RSS", "MB", 1e-6),
)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One workload on one server in one round; round 0 is the first."""

    server: str
    workload: str
    round: int
    metrics: dict[str, float]
    num_calls: int = 0
    num_failed: int = 0
    errors: list[str] = []  # different ones, of calls that failed
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    memory: Memory | None = None  # the peak
    server_cores: float | None = None  # busy on average
    client_cores: float | None = None
    idle_cores: float | None = None  # of the other servers together
    load: float | None = None  # the machine's load average before
    stall_s: float = 0.0  # the longest that the machine stood still


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one server in one workload, over the rounds; ratios are ours over theirs."""

    workload: str
    metric: str
    server: str
    num_rounds: int
    median: float
    least: float
    most: float
    ratio: float | None = None  # None for ours, and where no round has both
    ratio_least: float | None = None
    ratio_most: float | None = None


def measure(calls: Sequence[Call], answers: Sequence[Answer]) -> dict[str, float]:
    """The metrics that these answers have: whole ones count, in all the time that was taken."""
    pairs = [pair for pair in zip(calls, answers, strict=True) if not pair[1].error]
    if not pairs:
        return {}
    whole = [answer for _, answer in pairs]
    wall_s = max(a.finished for a in answers) - min(a.started for a in answers)
    first_s = [answer.first_token_s for answer in whole]
    if any(call.tag for call in calls):
        tagged = {tag: [a.first_token_s for call, a in pairs if call.tag == tag] for tag in _TAGS}
        return {f"ttft_{tag}_s": statistics.median(v) for tag, v in tagged.items() if v}
    if all(call.num_tokens == 1 for call in calls):
        speeds = [answer.num_prompt_tokens / answer.first_token_s for answer in whole]
        return {
            "prompt_tokens_per_s": statistics.median(speeds),
            "ttft_p50_s": percentile(first_s, 0.5),
        }
    gaps_s = [gap for answer in whole for gap in answer.gaps_s] or [0.0]
    # one piece of text may hold several tokens, and tokens may come without text
    num_later_tokens = sum(answer.num_output_tokens - 1 for answer in whole)
    return {
        "output_tokens_per_s": sum(a.num_output_tokens for a in whole) / wall_s,
        "ttft_p50_s": percentile(first_s, 0.5),
        "ttft_p99_s": percentile(first_s, 0.99),
        "itl_mean_s": sum(gaps_s) / max(1, num_later_tokens),
        "itl_p50_s": percentile(gaps_s, 0.5),
        "itl_p99_s": percentile(gaps_s, 0.99),
    }


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them lie, between neighbours by a straight line."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def memory_runs(runs: Sequence[Run], round_number: int) -> list[Run]:
    """For each server the peak of its memory over all workloads of one round, as a run."""
    peaks: dict[str, Memory] = {}
    for run in runs:
        if run.round == round_number and run.memory is not None:
            peaks[run.server] = run.memory.peak(peaks.get(run.server, run.memory))
    return [
        Run(
            server=server,
            workload="memory",
            round=round_number,
            metrics={"peak_pss_bytes": peak.pss_bytes, "peak_rss_bytes": peak.peak_rss_bytes},
        )
        for server, peak in peaks.items()
    ]


def summarize(runs: Sequence[Run], ours: str) -> list[Row]:
    """Medians and spread of every metric of every workload, in the order of the runs."""
    servers = list(dict.fromkeys([ours, *(run.server for run in runs)]))
    rows = []
    for workload in dict.fromkeys(run.workload for run in runs):
        own = [run for run in runs if run.workload == workload]
        for metric in METRICS:
            values = {
                server: {
                    run.round: run.metrics[metric.name]
                    for run in own
                    if run.server == server and metric.name in run.metrics
                }
                for server in servers
            }
            rows += [
                _row(workload, metric.name, server, values[ours], values[server])
                for server in servers
                if values[server]
            ]
    return rows


def _row(
    workload: str,
    metric: str,
    server: str,
    ours: dict[int, float],
    theirs: dict[int, float],
) -> Row:
    ratios: list[float] = []
    if ours is not theirs:
        ratios = [ours[i] / theirs[i] for i in ours.keys() & theirs.keys() if theirs[i]]
    return Row(
        workload=workload,
        metric=metric,
        server=server,
        num_rounds=len(theirs),
        median=statistics.median(theirs.values()),
        least=min(theirs.values()),
        most=max(theirs.values()),
        ratio=statistics.median(ratios) if ratios else None,
        ratio_least=min(ratios, default=None),
        ratio_most=max(ratios, default=None),
    )


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: a line for each workload and metric, a column for each server and each ratio."""
    servers = list(dict.fromkeys(row.server for row in rows))
    cells = {(row.workload, row.metric, row.server): row for row in rows}
    if not servers:
        return []
    heads = ["workload", "metric", servers[0]]
    for server in servers[1:]:
        heads += [server, f"{servers[0]} / {server}"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    metrics = {metric.name: metric for metric in METRICS}
    for workload, name in dict.fromkeys((row.workload, row.metric) for row in rows):
        metric = metrics[name]
        better = "higher" if metric.is_higher_better else "lower"
        line = [workload, f"{metric.title}, {metric.unit} ({better} is better)"]
        for server in servers:
            row = cells.get((workload, name, server))
            line.append(_spread(row, metric.scale))
            if server != servers[0]:
                line.append(_ratio(row))
        lines.append(_line(line))
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(row: Row | None, scale: float) -> str:
    if row is None:
        return ""
    median, least, most = (_short(v * scale) for v in (row.median, row.least, row.most))
    return median if row.num_rounds == 1 else f"{median} ({least} to {most})"


def _ratio(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return ""
    if row.num_rounds == 1:
        return f"{row.ratio:.2f}"
    return f"{row.ratio:.2f} ({row.ratio_least:.2f} to {row.ratio_most:.2f})"


def _short(value: float) -> str:
    """About three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
