"""`python -m natsweb`: the command line."""

from natsweb.cli import main

main()
