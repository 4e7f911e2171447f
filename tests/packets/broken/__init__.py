"""Set-ups that are broken, and the commands that name the cause."""
