"""``python -m pyproxy`` is the command ``pyproxy``."""

from pyproxy.cli.program import main

if __name__ == "__main__":
    main()
