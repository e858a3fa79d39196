"""The outside world: one file per library, each implementing a port of `core`."""
