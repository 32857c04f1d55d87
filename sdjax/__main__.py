"""Lets `python -m sdjax` do what the console script `sdjax` does."""

import sys

from sdjax.main import main

if __name__ == "__main__":
    sys.exit(main())
