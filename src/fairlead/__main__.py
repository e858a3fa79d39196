"""`python -m fairlead`."""

from fairlead.entrypoints.cli import main

main()
