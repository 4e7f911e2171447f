"""Benchmarks. Their results go into docs/performance.md by hand, with the machine and the spread."""
