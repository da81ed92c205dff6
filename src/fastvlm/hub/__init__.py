"""Repositories of the Hugging Face Hub: the files that a checkpoint needs, their download, the local cache."""
