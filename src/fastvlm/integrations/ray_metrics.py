"""Passes the server's metrics on to Ray, which exports those of all replicas at one place."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from fastvlm.errors import MissingExtraError

try:
    from ray.serve import metrics
except ModuleNotFoundError as _error:
    raise MissingExtraError.of_import(_error, "ray", "ray", "Ray Serve") from _error

_RENAMED = {"replica": "engine"}  # Ray gives `replica` a meaning of its own


class RayMetrics:
    """Each sample of a registry as a gauge of Ray, under its own name; counters keep growing, so rates work.

    Buckets of histograms are left out: with them a replica would have hundreds of gauges.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Any] = {}

    def update(self) -> None:
        """Set all gauges to the present values."""
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith(("_bucket", "_created")):
                    continue
                labels = {_RENAMED.get(name, name): value for name, value in sample.labels.items()}
                if sample.name not in self._gauges:
                    self._gauges[sample.name] = metrics.Gauge(sample.name, family.documentation, tuple(labels))
                self._gauges[sample.name].set(sample.value, tags=labels)
