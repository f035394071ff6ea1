"""Choose the instruction data that teaches a language model most (NN-CIFT).

In Python: ``import nncift_ray as nn``, then ``run = nn.select("corpus.jsonl", budget=0.1)`` and
``run.subset``, ``run.explain("3f9a12")``, ``run.report.open()``.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# bitsandbytes, which transformers imports where it is installed, warns on some CPUs that a kernel
# for its 4-bit layers could not be fetched; it has another.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

#: Public names and where they live; each is imported when it is first asked for.
_HOMES = {
    "select": "nncift_ray.library",
    "evaluate": "nncift_ray.library",
    "Run": "nncift_ray.library",
    "register_teacher": "nncift_ray.library",
    "Recipe": "nncift_ray.recipe.sections",
    "facility_location": "nncift_ray.mathematics",
    "influence_network": "nncift_ray.mathematics",
    "NnciftError": "nncift_ray.errors",
}

__all__ = [  # noqa: F822  (found by __getattr__)
    "NnciftError",
    "Recipe",
    "Run",
    "__version__",
    "evaluate",
    "facility_location",
    "influence_network",
    "register_teacher",
    "select",
]

if TYPE_CHECKING:
    from nncift_ray.errors import NnciftError
    from nncift_ray.library import Run, evaluate, register_teacher, select
    from nncift_ray.mathematics import facility_location, influence_network
    from nncift_ray.recipe.sections import Recipe


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nncift_ray' has no attribute '{name}'")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
