"""Exports: a checkpoint's graphs in plain torch operations, and the formats of other runtimes that are made of them."""
