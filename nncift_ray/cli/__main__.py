"""``python -m nncift_ray.cli``."""

from nncift_ray.cli import main

main()
