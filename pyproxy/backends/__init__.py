"""The proxy modes: a folder for each, their common interface, and the list of them."""
