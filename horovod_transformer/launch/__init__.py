"""Ranks as processes of this machine; nothing here imports torch."""
