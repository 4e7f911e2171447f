"""What all backends use of the kernel: netlink, conntrack, sysctl, addresses, running a command."""
