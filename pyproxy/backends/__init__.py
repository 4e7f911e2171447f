"""The proxy modes: one folder for each, what they have in common, and the list of them."""
