"""``python -m xferkit``."""

import sys

from xferkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
