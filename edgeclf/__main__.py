"""`python -m edgeclf` is the `edgeclf` command."""

from edgeclf.cli import main

main()
