"""The real control plane and the real kube-proxy, as tools of tests."""
