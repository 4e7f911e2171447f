"""Kubernetes objects from YAML and JSON files, and following changes of these."""
