"""The running process: start-up, the sync loop, health, metrics and shutdown."""
