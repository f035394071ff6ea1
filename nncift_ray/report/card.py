"""The card of an exported subset: where it comes from, in Markdown that Hugging Face reads.

Names of files and groups come from the corpus: they are escaped, and enter no YAML as they are.
"""

from __future__ import annotations

import re
from typing import Any

import jinja2
import yaml
from huggingface_hub import DatasetCardData

from nncift_ray.report.data import (
    ReportData,
    final_objective,
    headline_fidelity,
    knowledge_words,
    num_picks,
    share_of_best,
    two_digits,
    verdict,
)
from nncift_ray.report.text import clean_text, format_count, format_number, shorten

MAX_GROUPS = 30
MAX_NAME_CHARS = 120
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~-])")


def render_dataset_card(data: ReportData) -> str:
    """Return the card of a subset: Markdown with a YAML head; equal data give equal texts."""
    size = next((name for top, name in SIZES if num_picks(data) < top), "1M<n<10M")
    head = DatasetCardData(
        pretty_name=" ".join(clean_text(data.run_name).split()),
        size_categories=[size],
        tags=["instruction-tuning", "data-selection", "nncift_ray"],
    )
    recipe = _recipe(data)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", recipe)), default=0))
    environment = jinja2.Environment(  # noqa: S701  (Markdown: every text is escaped by "md")
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": escape, "count": format_count}
    card = environment.get_template("card.md.j2").render(
        head=f"---\n{head.to_yaml()}\n---",
        data=data,
        num_picks=num_picks(data),
        provenance=_provenance(data),
        groups=[row for row in data.mix if row.subset][:MAX_GROUPS],
        recipe=recipe,
        fence=fence,
    )
    return clean_text(card)


def render_export_readme(fingerprint: str, data_file: str) -> str:
    """Return the README of an export folder, which tells ``datasets`` the one file to load.

    ``datasets`` caches by the name of the configuration: the fingerprint keeps runs apart.
    """
    config = {"config_name": f"subset-{fingerprint}", "data_files": data_file}
    head = yaml.safe_dump({"configs": [config]}, sort_keys=False)
    return f"---\n{head}---\n\nThe subset in several forms, the most useful row first.\n"


def escape(text: str) -> str:
    """Return a text of the corpus as it is safe inside a Markdown table: one line, no markup."""
    line = shorten(" ".join(clean_text(text).split()), MAX_NAME_CHARS)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def _provenance(data: ReportData) -> list[tuple[str, str]]:
    share = share_of_best(data)
    fidelity, agreement = headline_fidelity(data), verdict(data)
    select = next((stage for stage in data.stages if stage.name == "select"), None)
    if fidelity and agreement:
        figure = two_digits(fidelity.beyond)
        agreement = f"{agreement} {figure} in {fidelity.split}: {knowledge_words(fidelity)}"
    elif fidelity:
        correlation = format_number(fidelity.spearman, 2)
        agreement = f"Spearman {correlation} on held-out examples ({fidelity.split})"
    return [
        ("Candidates", format_count(data.num_candidates)),
        ("Targets", format_count(data.num_targets) if data.num_targets else ""),
        ("Teacher", escape(data.teacher)),
        ("Objective", escape(data.objective)),
        ("Budget", escape(data.budget)),
        ("Value", format_number(final_objective(data), 4)),
        ("Share of the best possible value", f"at least {share:.1%}" if share == share else ""),
        ("Network against teacher", agreement),
        ("Selected", escape(data.created)),
        ("Fingerprint of the selection", f"`{select.fingerprint}`" if select else ""),
    ]


def _recipe(data: ReportData) -> str:
    """Return the parts of the recipe that shape the subset, as YAML."""
    shaping = "pair_scores" if data.by_teacher else "network"
    wanted = ("data", "teacher", "selection", "labels", shaping)
    config = {name: _without_pools(data.config[name]) for name in wanted if name in data.config}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""


def _without_pools(value: Any) -> Any:
    """Drop what shapes no row: sizes of actor pools."""
    if isinstance(value, dict):
        return {key: _without_pools(item) for key, item in value.items() if key != "pool"}
    return list(value) if isinstance(value, tuple) else value
