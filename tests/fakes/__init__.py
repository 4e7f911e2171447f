"""Stand-ins for tests that run without a kernel, a cluster or a clock: tables in memory, an agent, an API server."""
