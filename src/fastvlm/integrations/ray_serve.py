"""FastVLM on Ray Serve: ``serve run fastvlm.integrations.ray_serve:app model=mini replicas=2``.

Each replica is a `fastvlm serve` without a socket of its own: the same application, engine, limits and metrics.
The interfaces are those of Ray 2.60.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from fastvlm.backends.native.openmp import SHORT_SPINS
from fastvlm.errors import MissingExtraError, UsageError
from fastvlm.integrations.ray_metrics import RayMetrics
from fastvlm.server.app import create_app
from fastvlm.server.engines import open_engines
from fastvlm.server.service import Service
from fastvlm.server.setting_sources import PREFIX, read_settings
from fastvlm.server.settings import ServeSettings
from fastvlm.web import page_folder

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
except ModuleNotFoundError as _error:
    raise MissingExtraError.of_import(_error, "ray", "ray", "Ray Serve") from _error

_REPLICAS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_AUTO = "1-100"
_UPSCALE_DELAY_S = 10  # of load above the target until a replica is added; Ray's default of 30 s answers bursts late
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5, 30


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are and what each one takes; all values as typed.

    Args:
        replicas: ``2``, or ``1-8`` for as many as the number of ongoing requests asks for; ``auto`` is ``1-100``.
        num_cpus: CPUs of a replica, which are also its threads.
        num_gpus: GPUs of a replica; parts such as 0.5 share one.

    Raises:
        UsageError: a value that is none of these.
    """

    replicas: str = "1"
    num_cpus: str = "1"
    num_gpus: str = "0"

    def __post_init__(self) -> None:
        least, most = self.bounds
        if not 0 <= least <= most or most == 0:
            raise UsageError(
                f"replicas is {self.replicas!r}; expected a number such as 2, a range such as 1-8, or auto."
            )
        for name in ("num_cpus", "num_gpus"):
            if re.fullmatch(r"\d{1,4}(\.\d+)?", getattr(self, name)) is None:
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected a number such as 2 or 0.5.")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest number of replicas; (-1, -1) if `replicas` is neither a number nor a range."""
        found = _REPLICAS.fullmatch(_AUTO if self.replicas == "auto" else self.replicas)
        return (-1, -1) if found is None else (int(found[1]), int(found[2] or found[1]))

    def options(self, settings: ServeSettings) -> dict[str, Any]:
        """Options of the deployment.

        A replica takes some more requests than it has slots, so that the next ones are preprocessed meanwhile; all
        others wait at Serve's router, which knows which replica is free first.
        """
        return {
            **self._number(settings),
            "max_ongoing_requests": settings.slots + max(2, settings.slots // 2),
            "max_queued_requests": settings.max_waiting,
            "health_check_period_s": _HEALTH_PERIOD_S,
            "health_check_timeout_s": _HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": settings.shutdown_grace_s,
            "ray_actor_options": {
                "num_cpus": float(self.num_cpus),
                "num_gpus": float(self.num_gpus),
                "runtime_env": {"env_vars": dict([SHORT_SPINS])},  # in time: a replica imports torch at once
            },
            "request_router_config": RequestRouterConfig(request_router_class=f"{__name__}:ConversationRouter"),
        }

    def _number(self, settings: ServeSettings) -> dict[str, Any]:
        least, most = self.bounds
        if least == most:
            return {"num_replicas": least}
        return {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": settings.slots,
                "upscale_delay_s": _UPSCALE_DELAY_S,
            }
        }


class ConversationRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray is not installed where types are checked
    """Keeps a conversation on the replica whose caches hold its images and its earlier turns.

    The conversation is named by the header ``x-session-id``. If its replica is full, the next one on the ring takes the
    request. Requests without that header go to the less busy one of two replicas drawn by chance.
    """

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Ranks of replicas to try."""
        if pending_request is None or pending_request.metadata.session_id or not candidate_replicas:
            ranks: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            return ranks
        pending_request.routing_context.should_backoff = True
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


class FastVlmReplica:
    """One replica: a model, its engine and the application.

    Args:
        settings: of the server; `host` and `port` are Serve's, so they are without effect.
        num_threads: of computations on a CPU.
    """

    def __init__(self, settings: ServeSettings, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.service = Service(settings, lambda: open_engines(settings))
        self._metrics = RayMetrics(self.service.metrics.registry)

    def __serve_build_asgi_app__(self) -> Any:
        """The application; Serve calls this after the constructor, and sends requests when it has started."""
        page = page_folder() if self.service.settings.page else None
        return create_app(self.service, page, wait_until_ready=True)

    async def check_health(self) -> None:
        """Serve calls this every few seconds, and replaces a replica that raises. Also updates Ray's metrics."""
        if self.service.failure is not None:
            raise self.service.failure
        self._metrics.update()


def app(arguments: Mapping[str, str]) -> Any:
    """The application for ``serve run`` and ``serve deploy``.

    Args:
        arguments: settings of `fastvlm serve` by their names (``model``, ``slots``, ``image_size``, ...), which
            override the environment, and those of :class:`Scaling`. API keys come from the environment.

    Raises:
        UsageError: an unknown name, or a value out of range.
    """
    own = {field.name for field in fields(Scaling)}
    if "api_keys" in arguments:
        raise UsageError("api_keys is an argument, which others can see; set FASTVLM_SERVE_API_KEYS instead.")
    scaling = Scaling(**{name: str(value) for name, value in arguments.items() if name in own})
    variables = {f"{PREFIX}{name.upper()}": str(value) for name, value in arguments.items() if name not in own}
    settings = replace(read_settings({}, {**os.environ, **variables}), replicas=1)
    deployment = serve.deployment(name="FastVlm", **scaling.options(settings))(serve.ingress()(FastVlmReplica))
    return deployment.bind(settings, max(1, int(float(scaling.num_cpus))))
