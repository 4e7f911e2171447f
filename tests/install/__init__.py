"""Tests of how pyproxy gets onto a node, and of what starts it there: systemd, a container runtime, people with docs."""
