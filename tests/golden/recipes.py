"""The recipes whose rankings are frozen, each as what it differs in from ``COMMON``."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]

#: Words in a recipe that the harness puts paths in the place of.
TINY_MODEL, CANDIDATES, TARGETS = "<tiny model>", "<candidates>", "<targets>"

NUM_ROWS = 220
#: An IVF index has a cell for each 128 columns and looks through four at least.
NUM_ROWS_OF = {"pruned": 656}

# Labels, rates and epochs are such that networks come out alike on CPUs that round differently:
# with more steps Adam makes visible differences of those in the last bits.
COMMON: Tree = {
    "data": {"candidates": CANDIDATES, "group_by": "task"},
    "embedder": {"model": "embedded:all-minilm-l6-v2"},
    "labels": {"label_pairs": 3000},
    "network": {"num_epochs": 30, "min_steps": 0, "learning_rate": 1e-3},
    "pair_scores": {"top_k": 24},
    "selection": {"objective": "facility_location", "budget": 0.15, "repeats": None},
}
LANGUAGE_MODEL: Tree = {"model": TINY_MODEL, "engine": "transformers", "max_length": 512}

RECIPES: dict[str, Tree] = {
    "delift_se": {"teacher": {"kind": "delift_se"}},
    "delift_se_targets": {
        "teacher": {"kind": "delift_se"},
        "data": {"targets": TARGETS},
        "network": {"num_epochs": 20, "learning_rate": 3e-4},
    },
    "delift": {
        "teacher": {"kind": "delift", **LANGUAGE_MODEL},
        "labels": {"label_pairs": 120},
        "network": {"min_steps": 600},
        "pair_scores": {"top_k": 64},
        "selection": {"objective": "saturated_coverage", "saturation": 0.5},
    },
    "less_top_k": {
        "teacher": {
            "kind": "less",
            **LANGUAGE_MODEL,
            "less": {
                "warmup_fraction": 0.1,
                "num_epochs": 2,
                "batch_size": 8,
                "learning_rate": 2e-4,
                "rank": 4,
                "alpha": 16.0,
                "projection_dim": 256,
            },
        },
        "data": {"targets": TARGETS, "subtask_by": "task"},
        "labels": {"label_pairs": 300},
        "network": {"num_epochs": 10, "min_steps": 100},
        "selection": {"objective": "top_k"},
    },
    "selectit_top_k": {
        "teacher": {"kind": "selectit", **LANGUAGE_MODEL},
        "labels": {"label_pairs": 80},
        "selection": {"objective": "top_k"},
    },
    "own_teacher": {
        "teacher": {"kind": "tests.golden.my_teacher:Teacher"},
        "selection": {"objective": "graph_cut"},
    },
    "pruned": {
        "teacher": {"kind": "delift_se"},
        "pair_scores": {"mode": "pruned", "top_k": 6, "min_recall": 0.6, "recall_rows": 60},
        "selection": {"budget": 0.08},
    },
    "token_quotas": {
        "teacher": {"kind": "delift_se"},
        "selection": {
            "budget": {"tokens": 1500},
            "quotas": {"field": "task", "min": {"sums": 6}, "max": {"rewriting": 7, "advice": 5}},
        },
    },
}


def recipe_tree(name: str, paths: dict[str, str | list[str]], run_dir: str) -> Tree:
    """Return a recipe as plain values, with paths in the place of the words for them."""
    filled = _filled(_merged(COMMON, RECIPES[name]), paths)
    return {"run_dir": run_dir, **filled}


def _merged(base: Tree, more: Tree) -> Tree:
    both = {key: _merged(base[key], more[key]) for key in base.keys() & more.keys()
            if isinstance(more[key], dict) and isinstance(base[key], dict)}  # fmt: skip
    return {**base, **more, **both}


def _filled(value: Any, paths: dict[str, str | list[str]]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, paths) for key, each in value.items()}
    return paths.get(value, value) if isinstance(value, str) else value
