"""Docs that are generated from the program, and checks of the docs."""
