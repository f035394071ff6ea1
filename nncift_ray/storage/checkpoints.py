"""Networks on disk: safetensors for the numbers, JSON for the facts about them. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.storage.output import Sink, StageOutput

GROUP_SEPARATOR = "/"

#: Tensors by name, in named groups, e.g. a LoRA adapter beside the moments of its optimiser.
TensorGroups = Mapping[str, Mapping[str, npt.NDArray[np.float32]]]


def _weights_name(block: str) -> str:
    return f"network-{block}.safetensors"


def write_network(sink: Sink, block: str, network: FactoredNetwork, facts: dict[str, Any]) -> None:
    """Write the network of a block with facts such as its sizes and held-out loss."""
    sink.write_file(_weights_name(block), safetensors.numpy.save(network.to_state()))
    sink.write_file(f"network-{block}.json", _to_json(facts))


def read_network(output: StageOutput, block: str) -> FactoredNetwork:
    """Read the network of a block from the fit stage's output."""
    return FactoredNetwork.from_state(
        safetensors.numpy.load(output.read_file(_weights_name(block)))
    )


def write_arrays(sink: Sink, name: str, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write named arrays as one safetensors file."""
    whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    sink.write_file(name, safetensors.numpy.save(whole))


def read_arrays(output: StageOutput, name: str) -> dict[str, npt.NDArray[np.float32]]:
    """Read what ``write_arrays`` wrote."""
    return dict(safetensors.numpy.load(output.read_file(name)))


def _warmup_names(checkpoint: int) -> tuple[str, str]:
    return f"warmup-{checkpoint}.safetensors", f"warmup-{checkpoint}.json"


def warmup_files(
    checkpoint: int, groups: TensorGroups, facts: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files, name and content, that hold a checkpoint of the warm-up.

    Args:
        checkpoint: Its number, from 0.
        groups: Adapter and optimiser state, each tensors by name.
        facts: What JSON can hold, e.g. the number of steps.
    """
    weights_name, facts_name = _warmup_names(checkpoint)
    tensors = {
        f"{group}{GROUP_SEPARATOR}{name}": np.ascontiguousarray(array)
        for group, members in groups.items()
        for name, array in members.items()
    }
    yield weights_name, safetensors.numpy.save(tensors)
    yield facts_name, _to_json(facts)


def parse_warmup(
    checkpoint: int, read_file: Callable[[str], bytes]
) -> tuple[dict[str, dict[str, npt.NDArray[np.float32]]], dict[str, Any]]:
    """Return the groups and facts of a checkpoint whose files ``read_file`` finds by name."""
    weights_name, facts_name = _warmup_names(checkpoint)
    groups: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for key, array in safetensors.numpy.load(read_file(weights_name)).items():
        group, _, name = key.partition(GROUP_SEPARATOR)
        groups.setdefault(group, {})[name] = array
    return groups, json.loads(read_file(facts_name))


def read_warmup(
    warmup: StageOutput, checkpoint: int
) -> tuple[dict[str, dict[str, npt.NDArray[np.float32]]], dict[str, Any]]:
    """Return the groups and facts of a checkpoint in the warm-up stage's output."""
    return parse_warmup(checkpoint, warmup.read_file)


def _to_json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True).encode()
