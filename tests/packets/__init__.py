"""Packets through the agent on the kernel of this machine: what each kind of Service does to them."""
