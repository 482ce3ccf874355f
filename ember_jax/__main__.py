"""`python -m ember_jax`."""

from ._cli import main

main()
