"""The demo: pyproxy on two nodes, and real requests through every kind of Service of `examples/`.

`python -m tests.demo` sends them, prints the answers, and cleans up; its exit status is 1 if one was wrong.
With `--shell` it then starts a shell in the client pod.
"""
