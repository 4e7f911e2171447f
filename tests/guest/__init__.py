"""A guest kernel with IPVS, for tests that the machine's kernel cannot run."""
