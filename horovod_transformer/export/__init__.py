"""Checkpoints to and from other tools' formats."""
