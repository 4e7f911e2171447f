"""From Services to plans, the same for all backends: endpoint selection, claims, stale flows. Pure."""
