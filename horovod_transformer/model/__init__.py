"""The transformer, its loss and how it draws tokens."""
