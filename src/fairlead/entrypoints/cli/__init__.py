"""The command line."""

from fairlead.entrypoints.cli.app import main

__all__ = ["main"]
