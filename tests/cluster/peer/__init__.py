"""Comparison of pyproxy with kube-proxy: two equal labs, each with one of the proxies, and one API server for both."""
