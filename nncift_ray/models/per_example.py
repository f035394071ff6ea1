"""Per-example gradients of LoRA matrices, a batch at a time, and their random projections.

The gradient of one example's loss with respect to a linear layer's weight is the product of that
example's output gradients and inputs, summed over its tokens. One backward pass of the summed
losses has both for every example of the batch; hooks multiply them example by example. The
parameters themselves are frozen meanwhile, so that autograd computes no summed weight gradients.

Suffixes: B examples of a batch, N examples of a call, S tokens, I inputs and O outputs of a linear
layer, D adapter parameters, P projected dimensions.
Source: LESS, arXiv 2402.04333, section 4.1; per-example gradients from activations: Goodfellow,
arXiv 1510.01799.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.core.teaching import less
from nncift_ray.core.teaching.projection import RademacherProjector
from nncift_ray.models.batching import cut_batches
from nncift_ray.models.lora_model import LoraModel
from nncift_ray.models.trainable_model import TrainingExample
from nncift_ray.models.warmup import WarmupCheckpoint

#: Gradients held at once. More examples share one sweep over the projection's signs.
GRADIENT_BYTES = {"cpu": 2 << 30, "cuda": 8 << 30}

_Sink = Callable[[str, Tensor], None]


def project_gradients(
    model: LoraModel,
    examples: Sequence[TrainingExample],
    projector: RademacherProjector,
    *,
    precondition: WarmupCheckpoint | None,
    batch_tokens: int,
) -> NDArray[np.float32]:
    """Return every example's projected gradient, scaled to unit norm.

    The gradient is that of the mean loss over the example's own response tokens, taken without
    dropout in float32 at the adapter that the model has loaded, its matrices flattened one behind
    the other in the order of ``model.parameter_names``. A row depends on the examples of this call
    (their padding) but on nothing that was computed before.

    Args:
        model: Model with the checkpoint's adapter loaded.
        examples: What to differentiate.
        projector: From ``model.num_adapter_parameters`` dimensions to P.
        precondition: The checkpoint whose Adam state turns gradients into the direction of the
            next training step; None leaves them as they are.
        batch_tokens: Padded tokens of one forward and backward pass.

    Returns:
        [N, P] float32; NaN in the row of an example whose gradient is zero or not finite.

    Memory: GRADIENT_BYTES of gradients at most (one example's at least), beside the activations.
    """
    num_dims = model.num_adapter_parameters
    budget = GRADIENT_BYTES.get(model.device.type, GRADIENT_BYTES["cpu"])
    num_rows = max(1, min(len(examples), budget // (4 * num_dims)))
    features_NP = np.full((len(examples), projector.output_dim), np.nan, np.float32)
    by_length = sorted(range(len(examples)), key=lambda n: (-len(examples[n].input_ids), n))
    for start in range(0, len(examples), num_rows):
        group = by_length[start : start + num_rows]
        gradients_ND = _gradients(model, [examples[n] for n in group], batch_tokens)
        has_direction_N = torch.linalg.vector_norm(gradients_ND, dim=1) > 0
        if precondition is not None:
            _precondition(gradients_ND, model, precondition)
        features = projector.project(gradients_ND).cpu().double().numpy()
        norms_N = np.linalg.norm(features, axis=1)
        good_N = has_direction_N.cpu().numpy() & np.isfinite(norms_N) & (norms_N > 0)
        features_NP[np.asarray(group)[good_N]] = features[good_N] / norms_N[good_N, None]
    return features_NP


def per_example_gradients(model: LoraModel, batch: Sequence[TrainingExample]) -> dict[str, Tensor]:
    """Return the gradient of every example's loss by each LoRA matrix [B, *shape], float32."""
    gradients: dict[str, Tensor] = {}
    _backward(model, batch, gradients.__setitem__)
    return {name: gradients[name] for name in model.parameter_names}


def _gradients(model: LoraModel, examples: Sequence[TrainingExample], batch_tokens: int) -> Tensor:
    """Return the flat gradients [N, D] of examples sorted by length."""
    places: dict[str, tuple[int, int]] = {}
    for name, parameter in model.parameters.items():
        low = places[next(reversed(places))][1] if places else 0
        places[name] = low, low + parameter.numel()
    gradients_ND = torch.empty(
        (len(examples), model.num_adapter_parameters), device=model.device, dtype=torch.float32
    )
    for batch in cut_batches([len(e.input_ids) for e in examples], 0, batch_tokens):
        rows = slice(batch[0], batch[-1] + 1)  # they are sorted already

        def store(name: str, gradient: Tensor, rows: slice = rows) -> None:
            low, high = places[name]
            gradients_ND[rows, low:high] = gradient.flatten(1)

        _backward(model, examples[rows], store)
    return gradients_ND


def _precondition(gradients_ND: Tensor, model: LoraModel, checkpoint: WarmupCheckpoint) -> None:
    """Turn gradients into Adam's directions, matrix by matrix, in place."""
    low = 0
    for name in model.parameter_names:
        mean_D, square_D = (
            torch.tensor(moments[name], device=gradients_ND.device).flatten()
            for moments in (checkpoint.exp_avg, checkpoint.exp_avg_sq)
        )
        part_ND = gradients_ND[:, low : low + len(mean_D)]
        part_ND.copy_(less.precondition(part_ND, mean_D, square_D, checkpoint.num_steps))
        low += len(mean_D)


def _backward(model: LoraModel, batch: Sequence[TrainingExample], sink: _Sink) -> None:
    """Hand each LoRA matrix's per-example gradients [B, *shape] to the sink as they are made."""
    model.model.eval()  # no dropout
    with _frozen(model), _hooks(model, sink):
        # Each loss depends on its own example alone: the sum's gradient holds every one's.
        model.losses(batch).sum().backward()


@contextmanager
def _frozen(model: LoraModel) -> Iterator[None]:
    for parameter in model.parameters.values():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in model.parameters.values():
            parameter.requires_grad_(True)


@contextmanager
def _hooks(model: LoraModel, sink: _Sink) -> Iterator[None]:
    handles = [
        half.register_forward_hook(_make_hook(f"{name}.{part}.weight", sink))
        for name, down, up in model.adapted_layers()
        for part, half in (("lora_A", down), ("lora_B", up))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_hook(name: str, sink: _Sink) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def forward_hook(module: nn.Module, inputs: tuple[Any, ...], output_BSO: Tensor) -> None:
        del module
        inputs_BSI = inputs[0].detach()
        # Below the first adapter nothing requires a gradient: the backward pass ends there.
        output_BSO.requires_grad_()
        output_BSO.register_hook(
            lambda grad_BSO: sink(name, torch.bmm(grad_BSO.transpose(1, 2), inputs_BSI))
        )

    return forward_hook
