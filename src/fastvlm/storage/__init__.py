"""Atomic writes of files and folders, locks against concurrent writers, and readable write errors."""
