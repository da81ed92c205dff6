"""Checkpoint formats: key names, weight files, configuration of every published layout.

This package only reads files and does not import the network. A change of checkpoint keys belongs in ``names.py``.
"""
