"""Metrics, medians and ratios of hand-made answers and runs."""

import pytest

from loadtest.client import Answer
from loadtest.comparison import METRICS, Run, measure, memory_runs, percentile, summarize, table
from loadtest.processes import Memory
from loadtest.workloads import Call, Tag


def call(num_tokens: int = 2, tag: Tag = "") -> Call:
    return Call("/completions", {}, num_tokens, tag)


def answer(started: float, *texts: float, finished: float | None = None, error: str = "") -> Answer:
    """One token for each text; 100 tokens of prompt."""
    end = finished if finished is not None else texts[-1]
    return Answer(started, end, texts, 100, len(texts), error)


def a_run(server: str, round_number: int, value: float, workload: str = "decode-1") -> Run:
    return Run(
        server=server,
        workload=workload,
        round=round_number,
        metrics={"output_tokens_per_s": value},
    )


def test_percentiles() -> None:
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([4.0, 2.0, 3.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile(range(101), 0.99) == 99


def test_the_metrics_of_streams() -> None:
    answers = [answer(0.0, 1.0, 2.0, 4.0), answer(1.0, 4.0, 5.0, 6.0)]
    assert measure([call(3)] * 2, answers) == {
        "output_tokens_per_s": 1.0,  # 6 in 6 seconds
        "ttft_p50_s": 2.0,
        "ttft_p99_s": pytest.approx(2.98),
        "itl_mean_s": 1.25,
        "itl_p50_s": 1.0,
        "itl_p99_s": pytest.approx(1.97),
    }


def test_the_metrics_of_prefills() -> None:
    answers = [answer(0.0, 2.0), answer(2.0, 3.0), answer(3.0, finished=4.0)]
    assert measure([call(1)] * 3, answers) == {"prompt_tokens_per_s": 100.0, "ttft_p50_s": 1.0}


def test_the_metrics_of_a_prefix() -> None:
    tags: list[Tag] = ["miss", "hit", "hit", "hit"]
    answers = [answer(0.0, 4.0), answer(4.0, 4.5), answer(5.0, 5.25), answer(6.0, 9.0)]
    calls = [call(1, tag) for tag in tags]
    assert measure(calls, answers) == {"ttft_miss_s": 4.0, "ttft_hit_s": 0.5}
    assert measure(calls[:1], answers[:1]) == {"ttft_miss_s": 4.0}


def test_answers_that_are_not_whole_take_time_but_do_not_count() -> None:
    answers = [answer(0.0, 1.0, 2.0), answer(0.0, 1.0, finished=4.0, error="broke off")]
    assert measure([call()] * 2, answers)["output_tokens_per_s"] == 0.5
    assert measure([call()], answers[1:]) == {}


def test_ratios_are_within_rounds() -> None:
    runs = [
        *[a_run("ours", i, value) for i, value in enumerate([10.0, 40.0, 30.0])],
        *[a_run("theirs", i, value) for i, value in enumerate([20.0, 20.0])],
    ]
    ours, theirs = summarize(runs, "ours")
    assert (ours.server, ours.num_rounds, ours.median, ours.least, ours.most) == (
        *("ours", 3, 30.0, 10.0, 40.0),
    )
    assert ours.ratio is None
    assert (theirs.median, theirs.ratio, theirs.ratio_least, theirs.ratio_most) == (
        *(20.0, 1.25, 0.5, 2.0),
    )


def test_a_server_without_a_metric_has_no_row() -> None:
    runs = [a_run("theirs", 0, 1.0), a_run("ours", 0, 1.0, "decode-8")]
    rows = summarize(runs, "ours")
    assert [(row.workload, row.server, row.ratio) for row in rows] == [
        ("decode-1", "theirs", None),
        ("decode-8", "ours", None),
    ]
    assert summarize([], "ours") == []


def test_the_table() -> None:
    runs = [
        a_run("ours", 0, 1234.4),
        a_run("ours", 1, 1240.0),
        a_run("theirs", 0, 12.34),
        a_run("theirs", 1, 1.234),
        a_run("ours", 0, 7.0, "decode-8"),
    ]
    assert table(summarize(runs, "ours")) == [
        "| workload | metric | ours | theirs | ours / theirs |",
        "|---|---|---|---|---|",
        "| decode-1 | output, tokens/s (higher is better) | 1,237 (1,234 to 1,240) "
        "| 6.79 (1.23 to 12.3) | 552.45 (100.03 to 1004.86) |",
        "| decode-8 | output, tokens/s (higher is better) | 7.00 |  |  |",
    ]
    assert table([]) == []


def test_memory_is_the_peak_of_a_round() -> None:
    def run(server: str, round_number: int, pss: int, rss: int) -> Run:
        return Run(
            server=server,
            workload="w",
            round=round_number,
            metrics={},
            memory=Memory(pss, rss),
        )

    runs = [run("a", 0, 5, 6), run("a", 0, 3, 9), run("b", 0, 1, 2), run("a", 1, 100, 100)]
    without = Run(server="c", workload="w", round=0, metrics={})
    found = memory_runs([*runs, without], 0)
    assert [(one.server, one.workload, one.metrics) for one in found] == [
        ("a", "memory", {"peak_pss_bytes": 5, "peak_rss_bytes": 9}),
        ("b", "memory", {"peak_pss_bytes": 1, "peak_rss_bytes": 2}),
    ]


def test_each_metric_is_named_once() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert len({metric.title for metric in METRICS}) == len(METRICS)
