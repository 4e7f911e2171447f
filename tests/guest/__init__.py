"""A second kernel, with IPVS, for the packet suites."""
