"""The field's vocabulary as frozen values. No module here reads a clock, a file, a socket or an environment."""
