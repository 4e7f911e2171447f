"""The proxy modes: what each wants of a node, and the commands that show, remove or take over what is there."""
