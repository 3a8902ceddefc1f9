"""What a page of metrics says, read with prometheus_client's own parser."""

from prometheus_client.parser import text_string_to_metric_families

from engine.messages import EngineStats

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class FixedEngine:
    """An engine as server.engine_metrics.EngineView sees it."""

    def __init__(self, stats: EngineStats | None = None, problem: str | None = None) -> None:
        self.newest = stats or EngineStats()
        self.problem = problem

    def stats(self) -> EngineStats:
        return self.newest

    def health(self) -> str | None:
        return self.problem

    def silent_s(self) -> float:
        return 0.5


def parse(page: bytes | str) -> Samples:
    """Every sample; none may be there twice."""
    samples: Samples = {}
    for family in text_string_to_metric_families(page if isinstance(page, str) else page.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} twice"
            samples[key] = sample.value
    return samples


def value_of(samples: Samples, name: str, **labels: str) -> float:
    """The one sample of that name that has at least these labels."""
    (value,) = [
        value
        for (each, its_labels), value in samples.items()
        if each == name and labels.items() <= set(its_labels)
    ]
    return value
