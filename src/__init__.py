"""The names that programs started from the repository root import; the code is in `horovod_transformer`."""
