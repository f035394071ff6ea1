"""The short table a run ends with in a terminal."""

from __future__ import annotations

import math

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nncift_ray.report.cards import WARN, make_cards
from nncift_ray.report.data import ReportData
from nncift_ray.report.formatting import (
    clean_text,
    format_number,
    format_percent,
    shorten_middle,
)
from nncift_ray.report.headline import final_objective, mix_shares, num_picks

NUM_GROUPS = 3
MAX_GROUP_CHARS = 40


def summary_table(data: ReportData) -> RenderableType:
    """Make the short table of a run: picks, objective, top groups, fidelity, time and paths.

    Corpus texts and paths enter as plain text, so square brackets in them are not read as markup.
    """
    table = Table(title=Text(clean_text(data.run_name)), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for card in make_cards(data):
        table.add_row(card.name, Text(card.value, "yellow" if card.tone == WARN else ""), card.note)
    final = final_objective(data)
    if math.isfinite(final):
        table.add_row("Objective", format_number(final, 4), Text(data.objective))
    _add_groups(table, data)
    for label, path in data.outputs.items():
        table.add_row(Text(label), "", Text(clean_text(path)))
    return table


def _add_groups(table: Table, data: ReportData) -> None:
    """Add the groups with the largest share of the subset."""
    if len(data.mix) < 2 or not num_picks(data):
        return
    pool, subset = mix_shares(data.mix)
    for place, i in enumerate(np.argsort(-subset, kind="stable")[:NUM_GROUPS]):
        name = shorten_middle(clean_text(data.mix[i].group), MAX_GROUP_CHARS)
        note = f"{name} ({format_percent(float(pool[i]))} of the pool)"
        head = f"Top by {data.mix_name}" if place == 0 else ""
        table.add_row(Text(head), format_percent(float(subset[i])), Text(note))
