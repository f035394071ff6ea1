"""How much work a recipe is on a corpus, and how long it may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np

from nncift_ray.config import Config, TokenBudget
from nncift_ray.core.network.sampling import draw_block, draw_points
from nncift_ray.errors import DataError
from nncift_ray.pipeline.blueprint import Blueprint
from nncift_ray.pipeline.corpus_size import CorpusEstimate
from nncift_ray.stages.pairs.pruning_decision import EXACT, PRUNED, BlockDecision
from nncift_ray.stages.selection.selection_plan import TOP_K
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

CHARS_PER_TOKEN = 4.0

# Guesses, per actor; the first figures were measured on two AVX-512 cores.
EMBED_ROWS_PER_SECOND = {"cpu": 100.0, "gpu": 1500.0}
TEACHER_TOKENS_PER_SECOND = {"cpu": 300.0, "gpu": 20_000.0}
TRAINING_SHARE = 0.3  # of that speed, forward and backward
PAIRS_PER_SECOND_PER_CORE = 1.0e8
PRUNED_ROWS_PER_SECOND_PER_CORE = 4.0e4
INDEXED_COLUMNS_PER_SECOND_PER_CORE = 2.0e4
INGEST_ROWS_PER_SECOND = 20_000.0
STAGE_START_SECONDS = 4.0
FIT_START_SECONDS = 25.0
FIT_STEPS_PER_SECOND = 700.0
FOLDED_LABELS_PER_SECOND = 1.0e6


class Workload:
    """Amounts of work of a recipe on a corpus; speeds are guesses unless the recipe gives one.

    Where the index stage is finished, scoring takes what that stage measured.
    """

    def __init__(
        self,
        config: Config,
        blueprint: Blueprint,
        corpus: CorpusEstimate,
        hardware: str,
        decisions: Mapping[str, BlockDecision] | None = None,
    ) -> None:
        """Draw the sample that a run would draw, to count it.

        ``decisions`` are those of a finished index stage, by block.
        """
        self._decisions = decisions or {}
        self.config, self.corpus, self.hardware = config, corpus, hardware
        self.blueprint = blueprint
        self.num_rows = corpus.num_rows
        self.num_labelled = self.num_requests = self.num_pairs = 0
        self.num_gradients = 0
        self.teacher_tokens = 0.0
        self.example_tokens = (corpus.prompt_chars + corpus.response_chars) / CHARS_PER_TOKEN
        for block in blueprint.blocks:
            self._add_block(block)

    def _add_block(self, block: str) -> None:
        columns = self.corpus.num_candidates
        rows = self.corpus.num_targets if block == CROSS else columns
        self.num_pairs += rows if block == POINTS else rows * (columns + self.corpus.num_existing)
        size = f"{rows}" if block == POINTS else f"{rows} x {columns}"
        try:
            design = self.blueprint.sample_designs(columns, self.corpus.num_targets)[block]
            if block == POINTS:
                sample = draw_points(rows, design)
            else:
                sample = draw_block(rows, columns, block == WITHIN, design)
        except ValueError as error:
            raise DataError(f"no label sample of {size} examples: {error}") from error
        self.num_labelled += len(sample)
        teaching = self.blueprint.teaching
        helped = len(np.unique(sample.helped))
        helpers = 0 if sample.helper is None else len(np.unique(sample.helper))
        baselines = helped if teaching.needs_baseline else 0
        self.num_requests += (len(sample) + baselines) * teaching.prompts_per_request
        if teaching.needs_engine:
            # The example is computed once a helper, the query and response once a request.
            prompts = (len(sample) + baselines) * teaching.prompts_per_request
            self.teacher_tokens += (prompts + helpers) * self.example_tokens
        if teaching.needs_gradients:
            self.num_gradients += (helped + helpers) * self.config.teacher.less.num_epochs

    @property
    def num_warmup_examples(self) -> int:
        """Examples that LESS warms up on."""
        less = self.config.teacher.less
        wanted = round(less.warmup_fraction * self.corpus.num_candidates)
        return min(max(1, wanted), less.max_warmup_examples)

    @property
    def index_seconds(self) -> float:
        """Seconds of building the indices: measured where there are any, else guessed."""
        known = [decision.build_seconds for decision in self._decisions.values()]
        if self._is_measured:
            return sum(seconds or 0.0 for seconds in known)
        cores = os.cpu_count() or 1
        return self.corpus.num_candidates / (INDEXED_COLUMNS_PER_SECOND_PER_CORE * cores)

    @property
    def scoring_seconds(self) -> dict[str, float]:
        """Seconds of scoring by mode; building an index is not among them.

        "auto" is the way that was decided for each block, before that the faster one.
        """
        blocks = self.blueprint.prunable_blocks
        ways = {block: self._block_seconds(block) for block in blocks}
        always = self.num_pairs - sum(
            self._num_rows(b) * self.corpus.num_candidates for b in blocks
        )
        rest = always / (PAIRS_PER_SECOND_PER_CORE * (os.cpu_count() or 1))
        total = {way: rest + sum(ways[b][way] for b in blocks) for way in (EXACT, PRUNED)}
        if self._is_measured:
            chosen = rest + sum(ways[b][self._decisions[b].mode] for b in blocks)
        else:
            chosen = min(total.values())
        return {**total, "auto": chosen}

    @property
    def _is_measured(self) -> bool:
        """Whether the index stage timed both ways of scoring every block that may be pruned."""
        found = [self._decisions.get(block) for block in self.blueprint.prunable_blocks]
        return bool(found) and all(
            decision is not None
            and decision.exact_seconds is not None
            and decision.pruned_seconds is not None
            for decision in found
        )

    def _num_rows(self, block: str) -> int:
        return self.corpus.num_targets if block == CROSS else self.corpus.num_candidates

    def _block_seconds(self, block: str) -> dict[str, float]:
        """Return the seconds of scoring a block by either way, its index left out."""
        if self._is_measured:
            decision = self._decisions[block]
            pruned = (decision.pruned_seconds or 0.0) - (decision.build_seconds or 0.0)
            return {EXACT: decision.exact_seconds or 0.0, PRUNED: pruned}
        cores, rows = os.cpu_count() or 1, self._num_rows(block)
        pairs = rows * self.corpus.num_candidates
        return {
            EXACT: pairs / (PAIRS_PER_SECOND_PER_CORE * cores),
            PRUNED: rows / (PRUNED_ROWS_PER_SECOND_PER_CORE * cores),
        }

    def _ways(self) -> str:
        """Say what both ways of scoring would take, where there are two."""
        if not self.blueprint.prunable_blocks:
            return ""
        seconds = self.scoring_seconds
        pruned = seconds[PRUNED] + self.index_seconds
        told = f"all pairs {seconds[EXACT]:,.0f} s, pruned {pruned:,.0f} s with its index"
        return f"; {told}, by rates that this run measured" if self._is_measured else f"; {told}"

    def seconds(self, name: str) -> float:
        """Estimate a stage's seconds."""
        kind, config = self.hardware, self.config
        speed = config.cluster.teacher_tokens_per_second or TEACHER_TOKENS_PER_SECOND[kind]
        network = config.network
        steps = max(
            network.min_steps * len(self.blueprint.blocks),
            self.num_labelled * network.num_epochs // network.batch_size,
        )
        estimates: dict[str, Callable[[], float]] = {
            "ingest": lambda: self.num_rows / INGEST_ROWS_PER_SECOND,
            "deduplicate": lambda: self.num_rows / INGEST_ROWS_PER_SECOND,
            "embed": lambda: self.num_rows / EMBED_ROWS_PER_SECOND[kind],
            "warmup": lambda: (
                FIT_START_SECONDS
                + self.num_warmup_examples
                * config.teacher.less.num_epochs
                * self.example_tokens
                / (speed * TRAINING_SHARE)
            ),
            "gradients": lambda: (
                self.num_gradients * self.example_tokens / (speed * TRAINING_SHARE)
            ),
            "label": lambda: self.teacher_tokens / speed,
            "fit": lambda: FIT_START_SECONDS + steps / FIT_STEPS_PER_SECOND,
            "teacher_scores": lambda: self.num_labelled / FOLDED_LABELS_PER_SECOND,
            "index": lambda: self.index_seconds,
            "score_pairs": lambda: self.scoring_seconds[
                # An index that found too little is decided against in mode "pruned" as well.
                "auto" if self._is_measured else config.pair_scores.mode
            ],
        }
        return STAGE_START_SECONDS + estimates.get(name, lambda: 0.0)()

    def describe(self, name: str) -> str:
        """Say in words how much a stage has to do."""
        about = "" if self.corpus.exact else "about "
        unit, task, kept = "pairs", "to draw", f", top {self.config.pair_scores.top_k}"
        if self.config.objective == TOP_K:
            kept = ", summed by candidate"
        if POINTS in self.blueprint.blocks:
            unit, task, kept = "examples", "to rate", ""
        words = {
            "ingest": f"{about}{self.num_rows:,} records",
            "deduplicate": f"{about}{self.num_rows:,} records",
            "embed": f"{about}{self.num_rows:,} texts",
            "sample": f"{self.num_labelled:,} {unit} {task}",
            "warmup": f"{self.num_warmup_examples:,} examples, "
            f"{self.config.teacher.less.num_epochs} epochs",
            "gradients": f"{self.num_gradients:,} gradients",
            "label": f"{self.num_requests:,} requests"
            + (f", about {self.teacher_tokens:,.0f} tokens" if self.teacher_tokens else ""),
            "utility": f"{self.num_labelled:,} labels",
            "teacher_scores": f"{self.num_labelled:,} labels{kept}",
            "fit": f"{self.num_labelled:,} {unit}",
            "project": f"{about}{self.num_rows:,} examples",
            "index": f"{about}{self.corpus.num_candidates:,} columns",
            "score_pairs": f"{about}{self.num_pairs:,} {unit}{kept}{self._ways()}",
            "select_partitions": f"{about}{self.corpus.num_candidates:,} candidates in parts",
            "select": describe_budget(self.config, self.corpus.num_candidates),
        }
        return words.get(name, "")


def describe_budget(config: Config, num_candidates: int) -> str:
    """Say in words how much is to be selected."""
    budget = config.selection.budget
    if isinstance(budget, TokenBudget):
        return f"picks worth {budget.tokens:,} tokens"
    count = budget if isinstance(budget, int) else max(1, round(budget * num_candidates))
    return f"{min(count, num_candidates):,} picks of {num_candidates:,}"
