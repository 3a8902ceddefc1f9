"""How busy a server process's event loop is: the asyncio tasks that have not ended.

A request is a task, and each of its sequences is one; a number that stays above what an idle server
has is a leak.
"""

import asyncio
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class EventLoopCollector(Collector):
    """Counts when it is asked, in the event loop that renders the metrics; outside of one, 0."""

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not count."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        try:
            num_tasks = len(asyncio.all_tasks())
        except RuntimeError:  # no loop runs here
            num_tasks = 0
        text = "Tasks of the event loop of the server process that answers."
        yield GaugeMetricFamily("qwen_serve_event_loop_tasks", text, value=num_tasks)
