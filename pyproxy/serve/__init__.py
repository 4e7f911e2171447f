"""The HTTP servers: metrics, health and status page. They are given values and read no other state."""
