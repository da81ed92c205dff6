"""Evaluation: benchmarks' own files, answered by the engine, scored by the published metrics."""
