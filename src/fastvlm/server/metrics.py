"""Figures for Prometheus. Seconds and tokens; one registry a server, so that several may live in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from fastvlm.server.openai.generation import Totals
from fastvlm.server.replicas import Replica

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


class Metrics:
    """What the server counts. `replicas` are looked at when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("fastvlm_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.errors = Counter("fastvlm_errors", "Errors told to clients.", ["code"], registry=self.registry)
        self.hang_ups = Counter("fastvlm_hang_ups", "Clients that left early.", registry=self.registry)
        self.ttft = Histogram(
            "fastvlm_time_to_first_token_seconds",
            "From a request's first byte to the reply's first text.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.durations = Histogram(
            "fastvlm_request_seconds", "Of whole requests.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.rates = Histogram(
            "fastvlm_reply_tokens_per_second",
            "Of single replies, after the first token.",
            buckets=_RATES,
            registry=self.registry,
        )
        self.tokens = Counter(
            "fastvlm_tokens",
            "Tokens by kind: prompt; of these cached and image; completion.",
            ["kind"],
            registry=self.registry,
        )

    def watch(self, replicas: Mapping[str, Sequence[Replica]]) -> None:
        """Tell of these engines too, from now on; by the name that clients ask for."""
        self.registry.register(_Engines(replicas))

    def add(self, totals: Totals) -> None:
        """Count the replies of a request."""
        counts = {
            "prompt": totals.prompt_tokens,
            "cached": totals.cached_tokens,
            "image": totals.image_tokens,
            "completion": totals.completion_tokens,
        }
        for kind, count in counts.items():
            self.tokens.labels(kind).inc(count)
        for completion in totals.completions:
            if completion.tokens_per_second is not None:
                self.rates.observe(completion.tokens_per_second)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """State of the engines at the moment of asking."""

    def __init__(self, replicas: Mapping[str, Sequence[Replica]]) -> None:
        self._replicas = [
            ([name, str(index)], one) for name, several in replicas.items() for index, one in enumerate(several)
        ]

    def collect(self) -> Iterable[Metric]:
        """One sample a replica."""
        gauges: dict[str, tuple[str, Callable[[Replica], int]]] = {
            "fastvlm_slots": ("Replies that can be made at the same time.", lambda one: one.engine.num_slots),
            "fastvlm_slots_running": ("Replies being made.", lambda one: one.engine.num_running),
            "fastvlm_queue_waiting": ("Replies that wait for a slot.", lambda one: one.engine.num_waiting),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["model", "replica"])
            for labels, replica in self._replicas:
                gauge.add_metric(labels, value(replica))
            yield gauge
        images = CounterMetricFamily(
            "fastvlm_images",
            "Images that prompts needed, by whether they were known.",
            labels=["model", "replica", "cache"],
        )
        for labels, replica in self._replicas:
            for outcome, count in zip(("hit", "miss"), replica.engine.image_hits, strict=True):
                images.add_metric([*labels, outcome], count)
        yield images
