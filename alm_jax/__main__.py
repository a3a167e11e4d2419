"""`python -m alm_jax VERB ...` is `alm VERB ...`."""

import sys

from alm_jax.cli import main

sys.exit(main())
