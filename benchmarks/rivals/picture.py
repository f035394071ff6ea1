"""The picture of the study: what each method's picks teach beside random ones, pool by pool.

python -m benchmarks.rivals.picture          # reads rivals_cpu.json, writes rivals_cpu.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.rivals.picks import NEED_TARGETS

FIGURES = Path(__file__).parents[1] / "rivals_cpu.json"
TITLES = {
    "t0_gsm8k": "T0 + GSM8K,\ntarget GSM8K",
    "t0_rare": "T0, target\na rare task",
    "gsm8k_wrong": "GSM8K, a fifth\nof answers wrong",
    "demo": "planted faults,\nno target",
    "instructions": "mixed instructions,\nno target",
}
#: From the bottom to the top.
METHODS = {
    "longest": "longest",
    "selectit": "SelectIT",
    "ifd": "IFD",
    "loss_drop": "loss drop",
    "less": "LESS",
    "landmarks": "landmarks",
    "deita": "DEITA",
    "consistency": "consistency",
    "cosine": "cosine, plain",
    "rds_plus": "RDS+",
    "nn_cift+delift_se": "nncift_ray, DELIFT (SE)",
    "nn_cift+delift": "nncift_ray, DELIFT",
    "teacher: cosine": "nncift_ray, default",
}
WORST_SHOWN = 1.0  # nats above random; beyond, an arrow
OWN, OTHER, MUTED, RULE = "#0b5cad", "#5f6670", "#9aa1ab", "#c9ced6"


def draw(pools: list[dict[str, Any]]) -> plt.Figure:
    """Return one panel a pool: differences to random with 95 % intervals, lower is better."""
    figure, panels = plt.subplots(1, len(TITLES), figsize=(11, 3.9), sharey=True)
    by_name = {pool["name"]: pool for pool in pools}
    for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
        panel.axvline(0, color=RULE, linewidth=1.5, zorder=0)
        for place, method in enumerate(METHODS):
            _draw_method(panel, place, method, by_name[name]["methods"].get(method))
        panel.set_title(title, fontsize=9)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False, labelsize=8)
    panels[0].set_yticks(range(len(METHODS)), list(METHODS.values()), fontsize=9)
    figure.supxlabel(
        "NLL of held-out rows after fine-tuning, minus that of random picks (nats; left is better)",
        fontsize=9,
    )
    figure.tight_layout()
    return figure


def _draw_method(panel: Any, place: int, method: str, found: dict[str, float] | None) -> None:
    if found is None:
        text = "needs targets" if method in NEED_TARGETS else "not run"
        panel.text(0.5, place, text, transform=panel.get_yaxis_transform(), ha="center",
                   va="center", fontsize=7, color=MUTED, backgroundcolor="white")  # fmt: skip
        return
    colour = OWN if method.startswith(("nn_cift", "teacher")) else OTHER
    if found["difference"] > WORST_SHOWN:
        text = f"+{found['difference']:.1f} →"
        panel.text(0.97, place, text, transform=panel.get_yaxis_transform(), ha="right",
                   va="center", fontsize=8, color=colour)  # fmt: skip
        return
    panel.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.5)
    panel.plot(found["difference"], place, "o", color=colour, markersize=5)


def main() -> None:
    """Write the picture beside the figures."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rivals"
    pools = json.loads(FIGURES.read_text(encoding="utf-8"))["pools"]
    draw(pools).savefig(FIGURES.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
