"""`python -m fourd_core` is the command `fourd`."""

import sys

from fourd_core.cli import main

sys.exit(main())
