"""Compiled C++ kernels for CPUs with AMX, and their Python interface."""
