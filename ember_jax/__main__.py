"""`python -m ember_jax`."""

from ._cli.commands import main

main()
