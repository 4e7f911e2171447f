"""pyproxy: a kube-proxy replacement in Python."""

__version__ = "0.1.0"
