"""Engines over tiny models."""

from engine_fixtures import (  # noqa: F401
    _compiled_kernels,
    drain,
    encoder,
    engine,
    kernels,
    library,
    make_engine,
    model,
    question,
    short,
)
