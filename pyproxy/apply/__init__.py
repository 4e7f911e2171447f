"""The kernel: reads what is ours and performs changes. It decides nothing."""
