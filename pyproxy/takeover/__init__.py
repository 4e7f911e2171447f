"""Another proxy on this node: detecting one that runs, and removing the rules of one that is gone."""
