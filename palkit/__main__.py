"""`python -m palkit`, the same as `palkit`."""

import sys

from palkit.cli import main

sys.exit(main())
