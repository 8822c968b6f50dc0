"""Every page and picture: runs, evaluations, prepared data."""
