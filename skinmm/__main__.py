"""`python -m skinmm`: the `skinmm` command."""

import sys

from skinmm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
