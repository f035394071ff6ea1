"""The card of an exported subset: where it comes from, in Markdown that Hugging Face reads.

Names of files and groups come from the corpus: they are escaped, and enter no YAML as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import yaml

from nncift_ray.report.data import ReportData
from nncift_ray.report.figures import final_objective, headline_fidelity, num_picks, share_of_best
from nncift_ray.report.text import clean_text, format_count, format_number, shorten

MAX_GROUPS = 30
MAX_NAME_CHARS = 120
LONG_LINE = 10_000  # YAML would fold a longer one
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


def render_dataset_card(data: ReportData) -> str:
    """Write the card of a subset.

    Args:
        data: What the report shows of the run.

    Returns:
        Markdown with a YAML head; the same data gives the same text.
    """
    size = next((name for top, name in SIZES if num_picks(data) < top), "1M<n<10M")
    head = {
        "pretty_name": " ".join(clean_text(data.run_name).split()),
        "size_categories": [size],
        "tags": ["instruction-tuning", "data-selection", "nncift_ray"],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=LONG_LINE)
    parts = [_lead(data), _provenance(data), _groups(data), _columns(), _recipe(data)]
    return clean_text(f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def escape(text: str) -> str:
    """Return a text of the corpus as it is safe inside a Markdown table: one line, no markup."""
    line = shorten(" ".join(clean_text(text).split()), MAX_NAME_CHARS)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def _lead(data: ReportData) -> str:
    picks, pool = format_count(num_picks(data)), format_count(data.num_candidates)
    how = "by [NN-CIFT](https://arxiv.org/abs/2502.09969)"
    if data.by_teacher:
        how = f"by the labels of the teacher {escape(data.teacher)}, without a network,"
    return (
        f"# {escape(data.run_name)}\n\n{picks} of {pool} examples, selected {how} with "
        f"nncift_ray {data.version}. Rows stand "
        "in the order in which they were picked, the most useful first."
    )


def _provenance(data: ReportData) -> str:
    share = share_of_best(data)
    found = headline_fidelity(data)
    select = next((stage for stage in data.stages if stage.name == "select"), None)
    rows = [
        ("Candidates", format_count(data.num_candidates)),
        ("Targets", format_count(data.num_targets) if data.num_targets else ""),
        ("Teacher", escape(data.teacher)),
        ("Objective", escape(data.objective)),
        ("Budget", escape(data.budget)),
        ("Value", format_number(final_objective(data), 4)),
        ("Share of the best possible value", f"at least {share:.1%}" if share == share else ""),
        (
            "Network against teacher",
            f"Spearman {format_number(found.spearman, 2)} on held-out pairs ({found.split})"
            if found
            else "",
        ),
        ("Selected", escape(data.created)),
        ("Fingerprint of the selection", f"`{select.fingerprint}`" if select else ""),
    ]
    return _table("## Where it comes from", ("What", ""), [row for row in rows if row[1]])


def _groups(data: ReportData) -> str:
    shown = [row for row in data.mix if row.subset][:MAX_GROUPS]
    rows = [(escape(row.group), format_count(row.subset), format_count(row.pool)) for row in shown]
    return _table(f"## By {escape(data.mix_name)}", ("Group", "Selected", "Candidates"), rows)


def _columns() -> str:
    rows = [
        ("`messages`", "the example as a conversation"),
        ("`prompt`, `response`", "the same as two texts"),
        ("`record`", "the original record, untouched, as JSON"),
        ("`source`, `line`", "the file it came from, and where in it"),
        ("`rank`, `gain`", "when it was picked, and what it added to the objective"),
        ("`example_id`", "a hash of its content"),
    ]
    return _table("## Columns", ("Column", "What it holds"), rows)


def _recipe(data: ReportData) -> str:
    """List the parts of the recipe that shape the subset, as escaped YAML in a fence."""
    shaping = "pair_scores" if data.by_teacher else "network"
    wanted = ("data", "teacher", "selection", "labels", shaping)
    config = {name: data.config[name] for name in wanted if name in data.config}
    text = yaml.safe_dump(_without_pools(config), sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"## Recipe\n\n{fence}yaml\n{text}{fence}" if config else ""


def _without_pools(tree: Mapping[str, object]) -> dict[str, object]:
    """Drop what shapes no row: sizes of actor pools."""
    return {
        key: _without_pools(cast("Mapping[str, Any]", value))
        if isinstance(value, Mapping)
        else list(cast("tuple[object, ...]", value))
        if isinstance(value, tuple)
        else value
        for key, value in tree.items()
        if key != "pool"
    }


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(row) for row in rows]
    return f"{title}\n\n" + "\n".join(f"| {line} |" for line in lines)
