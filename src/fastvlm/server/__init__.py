"""The OpenAI-compatible server on the engine: routes, limits, refusals. Needs the extra `serve`."""
