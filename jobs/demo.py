"""The demo as a job: ``python -m jobs.demo --json`` is ``nncift demo --json``."""

import sys

from nncift_ray.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
