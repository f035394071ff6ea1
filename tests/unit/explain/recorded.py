"""Chains of stages (``tests.chain``) made to look like runs, by their record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nncift_ray.pipeline import RUN_RECORD
from nncift_ray.recipe.loading import make_config
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.selection.names import scored_blocks


def record_run(
    folder: Path, outputs: dict[str, StageOutput], *, run_dir: str | None = None, **data: Any
) -> str:
    """Write the record of a chain that ran in ``folder`` and return its run directory."""
    run_dir = run_dir or str(folder / "run")
    settings = outputs["select"].manifest.settings
    targets = [str(folder / "corpus" / "targets.jsonl")]
    has_targets = bool(outputs["deduplicate"].num_rows("targets"))
    pointwise = scored_blocks(outputs) == ("points",)
    scoring = {"top_k": 10, "by": "teacher"}
    if "project" in outputs:
        scoring = {"top_k": 10, "mode": "pruned" if "index" in outputs else "exact"}
    config = make_config(
        {
            "run_dir": run_dir,
            "data": {
                "candidates": [str(folder / "corpus" / "candidates.jsonl")],
                "targets": targets if has_targets else [],
                **data,
            },
            "teacher": {"kind": "selectit" if pointwise else "delift_se"},
            "network": {"num_hidden": 8},
            "pair_scores": scoring,
            "selection": {"objective": settings["objective"], "budget": settings["budget"]},
        }
    )
    record = {
        "version": "0",
        "config": config.model_dump(mode="json"),
        "stage_names": list(outputs),
        "stages": {name: output.fingerprint for name, output in outputs.items()},
        "written_at": "",
    }
    (Location.of(run_dir) / RUN_RECORD).write_bytes(json.dumps(record).encode())
    return run_dir
