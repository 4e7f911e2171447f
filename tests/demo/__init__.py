"""The demo: pyproxy on two nodes, and real requests through every kind of Service of `examples/`.

`python -m tests.demo` sends them, prints what was answered, and cleans up; its exit status is 1 if one went wrong.
With `--shell` it then gives a prompt in the client pod.
"""
