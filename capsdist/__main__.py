"""`python -m capsdist` is the command `capsdist`."""

import sys

from capsdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
