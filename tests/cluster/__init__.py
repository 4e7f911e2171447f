"""Tests with a real control plane, and with the real kube-proxy."""
