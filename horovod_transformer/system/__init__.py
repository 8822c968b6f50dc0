"""The machine below: files, locks, paths, cores, console, signals."""
