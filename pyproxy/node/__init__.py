"""This node: its name, its addresses, and which traffic is local."""
