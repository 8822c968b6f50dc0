"""Starting ranks: on this machine (local)."""
