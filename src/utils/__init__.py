"""Configuration and process groups."""
