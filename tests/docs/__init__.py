"""Docs that are made from the program, and docs that are held against it."""
