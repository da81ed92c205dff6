"""Benchmarks: processes that are measured in turn, statistics, costs, and the page that shows them."""
