"""Real packets through each kind of Service, programmed by the installed agent on the kernel of this machine."""
