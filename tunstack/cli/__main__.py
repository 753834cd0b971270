"""`python -m tunstack.cli`, the same as the `tunstack` command."""

from tunstack.cli import main

main(prog_name="tunstack")
