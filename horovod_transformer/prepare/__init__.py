"""Books to blocks of tokens on disk."""
