"""Benchmarks' own files -> questions; records that cannot be asked are kept with file, line and reason."""
