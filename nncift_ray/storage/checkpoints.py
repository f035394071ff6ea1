"""Networks on disk: safetensors for the numbers, JSON for the facts about them. Never a pickle."""

from __future__ import annotations

import json
from typing import Any

import safetensors.numpy

from nncift_ray.core.factored import FactoredNetwork
from nncift_ray.storage.output import Sink, StageOutput


def _weights_name(block: str) -> str:
    return f"network-{block}.safetensors"


def write_network(sink: Sink, block: str, network: FactoredNetwork, facts: dict[str, Any]) -> None:
    """Write the network of a block with facts such as its sizes and held-out loss."""
    sink.write_file(_weights_name(block), safetensors.numpy.save(network.to_state()))
    sink.write_file(f"network-{block}.json", json.dumps(facts, indent=1, sort_keys=True).encode())


def read_network(output: StageOutput, block: str) -> FactoredNetwork:
    """Read the network of a block from the fit stage's output."""
    return FactoredNetwork.from_state(
        safetensors.numpy.load(output.read_file(_weights_name(block)))
    )
