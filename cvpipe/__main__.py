"""`python -m cvpipe` is the command `cvpipe`."""

import sys

from cvpipe.cli import main

sys.exit(main())
