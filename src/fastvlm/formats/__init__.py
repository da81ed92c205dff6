"""The layouts in which FastVLM checkpoints are published: key names, weight files, configuration.

Everything here reads; nothing here knows the network. When a checkpoint's keys change, ``names.py`` is the file.
"""
