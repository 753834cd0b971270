"""`python -m tunstack`, the same as the `tunstack` command."""

from tunstack.cli import main

main(prog_name="tunstack")
