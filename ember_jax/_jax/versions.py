"""Which releases of JAX this package is tested with."""

OLDEST = (0, 10, 2)
# A later patch release of these two numbers counts as tested.
NEWEST = (0, 12)
