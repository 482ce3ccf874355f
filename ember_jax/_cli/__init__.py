"""The command line; the installed command `ember_jax` runs `main`."""

from .commands import main as main
