"""python -m fastsmtp: the same as the command fastsmtp."""

import sys

from fastsmtp.cli import main

sys.exit(main())
