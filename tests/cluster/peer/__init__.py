"""Two equal labs, the real kube-proxy on the nodes of one and pyproxy on those of the other, told by one API server."""
