"""What the handlers of requests share, once the model is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fastvlm.engine.structured_output import GrammarCompiler
from fastvlm.processing.tokenizer import TokenizerLike
from fastvlm.server.http.remote_images import RemoteImages
from fastvlm.server.metrics import Metrics
from fastvlm.server.openai.logprobs import LogprobFormatter
from fastvlm.server.replicas import Replicas
from fastvlm.server.settings import ServeSettings
from fastvlm.server.text_limits import TextLimits

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerContext:
    """Settings, engines by model name, and helpers of one server."""

    settings: ServeSettings
    models: Mapping[str, Replicas]
    grammars: GrammarCompiler
    logprobs: LogprobFormatter
    remote_images: RemoteImages
    metrics: Metrics
    tokenizer: TokenizerLike
    text_limits: TextLimits
    parser: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fastvlm-parse")
    )

    async def parse(self, function: Callable[[ServerContext, Argument], Result], argument: Argument) -> Result:
        """``function(self, argument)`` in the one thread that parses and tokenizes: it takes memory for one request."""
        return await asyncio.get_running_loop().run_in_executor(self.parser, function, self, argument)
