"""The upstream e2e suite of Kubernetes against pyproxy, on real kubelets."""
