"""Metrics for Prometheus, in seconds and tokens. One registry per server, because several may run in one process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from fastvlm.engine.types import Completion, Usage
from fastvlm.server.replicas import Replica

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_LABELS = ["model", "replica"]
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


class Metrics:
    """All metrics of one server. Those of its engines are read when the page is requested."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("fastvlm_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.errors = Counter("fastvlm_errors", "Errors sent to clients.", ["code"], registry=self.registry)
        self.hang_ups = Counter("fastvlm_hang_ups", "Clients that disconnected early.", registry=self.registry)
        self.ttft = Histogram(
            "fastvlm_time_to_first_token_seconds",
            "From a request's first byte to the reply's first text.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.durations = Histogram(
            "fastvlm_request_seconds", "Duration of requests.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.rates = Histogram(
            "fastvlm_reply_tokens_per_second",
            "Decoding speed of single replies, after the first token.",
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
        """Add the metrics of these engines, by model name."""
        self.registry.register(_EngineCollector(replicas))

    def add(self, usage: Usage, completions: Sequence[Completion]) -> None:
        """Count the replies of a request."""
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("cached").inc(usage.cached_prompt_tokens)
        self.tokens.labels("image").inc(usage.image_tokens)
        self.tokens.labels("completion").inc(usage.completion_tokens)
        for completion in completions:
            if completion.tokens_per_second is not None:
                self.rates.observe(completion.tokens_per_second)

    def page(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engines' state when it is collected."""

    def __init__(self, replicas: Mapping[str, Sequence[Replica]]) -> None:
        self._engines = [
            ([name, str(index)], one.engine) for name, several in replicas.items() for index, one in enumerate(several)
        ]

    def collect(self) -> Iterable[Metric]:
        """One sample per replica."""
        slots = GaugeMetricFamily("fastvlm_slots", "Replies that can be generated at the same time.", labels=_LABELS)
        running = GaugeMetricFamily("fastvlm_slots_running", "Replies being generated.", labels=_LABELS)
        waiting = GaugeMetricFamily("fastvlm_queue_waiting", "Replies that wait for a slot.", labels=_LABELS)
        images = CounterMetricFamily(
            "fastvlm_images", "Images in prompts, by whether the cache had them.", labels=[*_LABELS, "cache"]
        )
        drafts = CounterMetricFamily(
            "fastvlm_draft_tokens",
            "Tokens drafted: forced by a schema, which always hold; found by prompt lookup; of these accepted.",
            labels=[*_LABELS, "kind"],
        )
        for labels, engine in self._engines:
            slots.add_metric(labels, engine.num_slots)
            running.add_metric(labels, engine.num_running)
            waiting.add_metric(labels, engine.num_waiting)
            for outcome, count in zip(("hit", "miss"), engine.image_hits, strict=True):
                images.add_metric([*labels, outcome], count)
            for kind, count in asdict(engine.draft_counts).items():
                drafts.add_metric([*labels, kind], count)
        return slots, running, waiting, images, drafts
