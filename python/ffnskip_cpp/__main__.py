"""`python -m ffnskip_cpp` is the command `ffnskip`."""

import sys

from .cli import main

sys.exit(main())
