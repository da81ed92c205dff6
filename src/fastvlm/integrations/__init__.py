"""Plugins for other programs that run FastVLM; their packages are imported only here."""
