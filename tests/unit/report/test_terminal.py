from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from nncift_ray.report.data import ReportData
from nncift_ray.report.page import summary_table
from tests.unit.report.make_data import make_empty_data, make_report_data


def print_table(data: ReportData) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(summary_table(data))
    return capture.get()


def test_summary_names_picks_fidelity_groups_and_paths() -> None:
    printed = print_table(make_report_data())
    for part in (
        "20 %",
        "0.40",
        "0.35 to 0.45",
        "sums",
        "runs/tiny/export/subset.jsonl",
    ):
        assert part in printed


def test_summary_of_a_bare_run_prints() -> None:
    assert "Examples selected" in print_table(make_empty_data())


def test_brackets_in_names_are_not_markup() -> None:
    data = replace(make_report_data(text="[red]task[/red]"), run_name="[/bold] run")
    printed = print_table(data)
    assert "[/bold] run" in printed
    assert "[red]task[/red]" in printed
