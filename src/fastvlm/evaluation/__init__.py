"""How right the answers are: benchmarks' own files, asked through the engine, judged by the published metrics."""
