"""What a run measures and records of itself."""
