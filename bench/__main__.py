"""``python -m bench`` is ``multicrop-bench``."""

import sys

from bench.cli import main

sys.exit(main())
