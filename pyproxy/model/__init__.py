"""Kubernetes objects, addresses and names as immutable values, and the tracker. Pure."""
