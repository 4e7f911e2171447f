"""Decisions. Nothing here reads a clock, a file, a socket, a process, an environment variable or a random number."""
