"""How flags are written, and those that belong together."""
