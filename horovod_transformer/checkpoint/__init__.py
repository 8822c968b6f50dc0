"""Checkpoints: the file format (format), and the folder that a run keeps them in (manager)."""
