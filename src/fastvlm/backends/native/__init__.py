"""Compiled C++ kernels for CPUs with AMX, and what calls them."""
