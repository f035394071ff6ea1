"""The recipe's ``selection`` section as the plan that the select stage works by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nncift_ray.config import Config, TokenBudget
from nncift_ray.errors import DataError, StorageError
from nncift_ray.stages.selection.selection_plan import Quotas, SelectionPlan
from nncift_ray.storage.filesystem import Location

_ID = re.compile(r"[0-9a-f]{32}")


def selection_plan(config: Config, blocks: Sequence[str]) -> SelectionPlan:
    """Read what to select.

    Args:
        config: The recipe.
        blocks: The blocks that its objective reads.

    Raises:
        DataError: If a list of ids cannot be read.
    """
    selection = config.selection
    budget, optimizer, quotas = selection.budget, selection.optimizer, selection.quotas
    return SelectionPlan(
        objective=config.objective,
        blocks=tuple(blocks),
        fraction=budget if isinstance(budget, float) else None,
        count=budget if isinstance(budget, int) else None,
        tokens=budget.tokens if isinstance(budget, TokenBudget) else None,
        eta=selection.eta,
        nu=selection.nu,
        redundancy=selection.redundancy,
        saturation=selection.saturation,
        optimizer=optimizer.kind,
        epsilon=optimizer.epsilon,
        partitions=optimizer.partitions,
        rounds=optimizer.rounds,
        bounding=optimizer.bounding,
        stop_gain=selection.stop_gain,
        quotas=Quotas(
            quotas.field or config.data.group_by,
            dict(quotas.min),
            dict(quotas.max) if isinstance(quotas.max, Mapping) else quotas.max,
        )
        if quotas.given
        else Quotas(),
        include=read_ids(selection.include, "selection.include"),
        exclude=read_ids(selection.exclude, "selection.exclude"),
        seed=selection.seed,
    )


def read_ids(given: tuple[str, ...] | str, key: str) -> tuple[str, ...]:
    """Return ids as they are listed in the recipe, or in a file with one a line.

    Raises:
        DataError: If the file cannot be read or a line is no id.
    """
    if not isinstance(given, str):
        lines, where = list(given), key
    elif _ID.fullmatch(given):
        lines, where = [given], key
    else:
        where = f"{key}: {given}"
        try:
            text = Location.of(given).read_bytes().decode("utf-8")
        except (StorageError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: the list of ids cannot be read ({error})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if not _ID.fullmatch(line)]
    if wrong:
        raise DataError(
            f"{where}: '{wrong[0][:80]}' is no id of an example. Ids are the 32 hexadecimal digits "
            "of export/ids.txt"
        )
    return tuple(dict.fromkeys(lines))
