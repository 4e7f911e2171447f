"""Tests of installing pyproxy on a node, and of starting it there: systemd, a container runtime, the documented commands."""
