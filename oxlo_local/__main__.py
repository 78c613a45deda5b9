"""`python -m oxlo_local` is the `oxlo` command."""

from oxlo_local.cli import main

main()
