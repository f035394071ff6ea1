"""The whole recipe: its sections, and the rules that join them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nncift_ray.config.data import DataConfig, EmbedderConfig
from nncift_ray.config.evaluation import EvaluationConfig
from nncift_ray.config.scoring import NetworkConfig, PairScoresConfig
from nncift_ray.config.secrets import find_secret
from nncift_ray.config.sections import NodeLabels, Section
from nncift_ray.config.selection import (
    CONDITIONAL,
    WITHOUT_TARGETS,
    Objective,
    SelectionConfig,
)
from nncift_ray.config.teacher import LabelsConfig, TeacherConfig


class ClusterConfig(Section):
    """Where to run.

    Attributes:
        address: Ray address; null: RAY_ADDRESS if set, else a Ray of our own on this machine.
        labels: Labels of the nodes for every stage whose pool names none, as in a pool; so that
            what must last stays off spot nodes.
        worker_logs: Show what workers print.
        log_format: Progress for people (text), or JSON lines on standard error (json) with run,
            stage and shard ids. A run directory on a disk gets these lines in ``logs/`` anyway.
        price_per_gpu_hour: US dollars, for `nncift plan` and the report.
        price_per_cpu_hour: US dollars.
        teacher_tokens_per_second: Speed of one teacher actor, for `nncift plan`; null: a guess by
            hardware.
        placement_timeout: Seconds for which no node may be able to hold an actor before the stage
            stops and says what is missing; long enough for an autoscaler and for a spot shortage.
    """

    address: str | None = None
    labels: NodeLabels = {}
    worker_logs: bool = False
    log_format: Literal["text", "json"] = "text"
    price_per_gpu_hour: float = Field(default=2.5, ge=0)
    price_per_cpu_hour: float = Field(default=0.04, ge=0)
    teacher_tokens_per_second: float | None = Field(default=None, gt=0)
    placement_timeout: float = Field(default=1800, gt=0)

    def hourly_price(self, num_cpus: float, num_gpus: float) -> float:
        """Return what a worker costs an hour, US dollars: its GPUs, or its CPUs if it has none."""
        if num_gpus:
            return num_gpus * self.price_per_gpu_hour
        return num_cpus * self.price_per_cpu_hour


class ExportConfig(Section):
    """The files of the subset. ``subset.jsonl`` and ``subset.parquet`` are always written.

    Attributes:
        formats: Other forms: alpaca, messages and sharegpt for training programs, dataset (a folder
            with a card that Hugging Face datasets loads), ids (one a line).
    """

    formats: tuple[Literal["alpaca", "messages", "sharegpt", "dataset", "ids"], ...] = (
        "alpaca",
        "messages",
        "sharegpt",
        "dataset",
        "ids",
    )


class ReportConfig(Section):
    """The HTML report.

    Attributes:
        title: Heading; the run directory's name when null.
        num_picks: Picks shown with what they cover.
    """

    title: str | None = None
    num_picks: int = Field(default=12, ge=1, le=200)


class Config(Section):
    """A whole recipe."""

    run_dir: str = Field(min_length=1)
    data: DataConfig
    teacher: TeacherConfig
    selection: SelectionConfig
    embedder: EmbedderConfig = EmbedderConfig()
    labels: LabelsConfig = LabelsConfig()
    network: NetworkConfig = NetworkConfig()
    pair_scores: PairScoresConfig = PairScoresConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    export: ExportConfig = ExportConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        secret = find_secret(self.model_dump(mode="json"))
        if secret is not None:
            raise ValueError(secret)
        return self

    @model_validator(mode="after")
    def _targets_where_needed(self) -> Self:
        if "mutual_information" in self.selection.objective and not self.data.targets:
            raise ValueError(
                f"selection.objective: {self.selection.objective} needs data.targets; "
                "give targets, or use facility_location"
            )
        return self

    @model_validator(mode="after")
    def _roles_are_read(self) -> Self:
        objective = self.selection.objective
        if objective in CONDITIONAL and not self.data.existing:
            raise ValueError(
                f"selection.objective: {objective} needs data.existing, what the model already has"
            )
        if self.data.existing and self.objective not in CONDITIONAL:
            raise ValueError(
                f"data.existing: {objective} reads no existing data; use "
                f"{' or '.join(CONDITIONAL)}, or take the key out"
            )
        if self.data.targets and objective in WITHOUT_TARGETS:
            raise ValueError(
                f"data.targets: {objective} reads no targets; use graph_cut_mutual_information, or "
                "take the key out"
            )
        return self

    @model_validator(mode="after")
    def _selectit_ranks(self) -> Self:
        if self.teacher.kind == "selectit" and self.selection.objective not in ("top_k", "random"):
            raise ValueError(
                "teacher.kind selectit scores examples, not pairs, so selection.objective must be "
                f"top_k (given: {self.selection.objective})"
            )
        return self

    @model_validator(mode="after")
    def _teacher_scores_what_it_labels(self) -> Self:
        if self.pair_scores.by == "teacher" and self.data.existing:
            raise ValueError(
                "pair_scores.by: teacher takes labels for scores, and data.existing are never "
                "labelled; set by to network, or take data.existing out"
            )
        return self

    @model_validator(mode="after")
    def _rows_to_centre(self) -> Self:
        if self.teacher.kind != "selectit":
            return self
        if self.network.centre_rows or self.network.loss == "row_order":
            raise ValueError(
                "teacher.kind selectit scores examples, not pairs: there are no rows for "
                "network.centre_rows and network.loss row_order; leave both out"
            )
        return self

    @property
    def objective(self) -> Objective:
        """What runs: facility_location is its conditional form where there are existing data.

        With targets and no existing data it is its mutual information form.
        """
        if self.selection.objective == "facility_location" and self.data.existing:
            return "facility_location_conditional_gain"
        if self.selection.objective == "facility_location" and self.data.targets:
            return "facility_location_query_mutual_information"
        return self.selection.objective
