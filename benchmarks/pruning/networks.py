"""Networks to prune for: trained on DELIFT (SE) and on DELIFT labels of T0 rows.

Suffixes: N examples, D embedding, P labelled pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.teacher.texts import Setting, choose_pairs
from nncift_ray.corpus.examples import Example, embedding_text
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.models import (
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.engines.vllm import VllmEngine
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.network.network import InfluenceNetwork, PairData, TrainingConfig, train_network
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.delift import DeliftTeacher

HIDDEN = 100
STEPS = 20_000  # of Adam, at the paper's batch size and learning rate
THREADS = 1  # a batch of 64 is too small for more
HELD_OUT = 0.1  # of the pairs: they choose the weights that are kept
SE_EXAMPLES, SE_PAIRS = 1000, 20_000
#: Short examples and short queries: what a 135M model labels a few of a second.
LABELLED = Setting("labelled", (15, 60), (15, 60))
LABELLED_HELPERS, LABELLED_QUERIES = 24, 24


def train_on_cosines(embedding_ND: np.ndarray, seed: int = 0) -> FactoredNetwork:
    """Train on DELIFT (SE) labels: the cosines of random pairs among 1,000 random examples."""
    random = np.random.default_rng(seed)
    sample = random.permutation(len(embedding_ND))[:SE_EXAMPLES]
    helped, helper = (sample[random.integers(len(sample), size=SE_PAIRS)] for _ in range(2))
    utility = np.einsum("pd,pd->p", embedding_ND[helped], embedding_ND[helper])
    return train(embedding_ND, embedding_ND, helped, helper, utility, seed)


def train_on_delift(path: Path | None, rows: Sequence[Example], seed: int = 0) -> FactoredNetwork:
    """Train on DELIFT labels: those of a file, or a few hundred made here.

    Args:
        path: An npz file: texts and utilities of a matrix of
            pairs, NaN where a pair was not measured.
        rows: Examples to label where there is no file.
        seed: Of weights, order and held-out pairs.
    """
    texts_helped, texts_helper, utility_IJ = (
        label_pairs(rows) if path is None else read_labels(path)
    )
    embedder = SentenceTransformerEmbedder(resolve_embedder(EMBEDDED_EMBEDDER).path)
    helped_ED, helper_ED = embedder.embed(texts_helped), embedder.embed(texts_helper)
    helped, helper = np.nonzero(np.isfinite(utility_IJ))
    return train(helped_ED, helper_ED, helped, helper, utility_IJ[helped, helper], seed)


def read_labels(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the texts of helped and helpers, as they are embedded, and the utilities [I, J]."""
    with np.load(path) as arrays:
        helped, helper = (
            [
                embedding_text(str(prompt), str(response))
                for prompt, response in zip(
                    arrays[f"{role}_prompt"], arrays[f"{role}_response"], strict=True
                )
            ]
            for role in ("helped", "helper")
        )
        return helped, helper, arrays["utility"].astype(np.float64)


def label_pairs(rows: Sequence[Example]) -> tuple[list[str], list[str], np.ndarray]:
    """Ask DELIFT, with the packaged model, about a small matrix of pairs: a minute or two."""
    engine = VllmEngine(
        resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path, EngineConfig(template="paper")
    )
    teacher = DeliftTeacher(engine)
    pairs = choose_pairs(rows, engine.encode, LABELLED, LABELLED_HELPERS, LABELLED_QUERIES)
    helped = [request.helped for request in pairs[:LABELLED_QUERIES]]
    helpers = [request.helper for request in pairs[::LABELLED_QUERIES] if request.helper]
    alone_I = _distances(teacher, [LabelRequest(one) for one in helped])
    value_JI = _distances(teacher, pairs).reshape(len(helpers), len(helped))
    teacher.close()
    texts = [
        [embedding_text(one.prompt, one.response) for one in ones] for ones in (helped, helpers)
    ]
    return texts[0], texts[1], (alone_I - value_JI).T


def train(
    helped_ED: np.ndarray,
    helper_ED: np.ndarray,
    helped_P: np.ndarray,
    helper_P: np.ndarray,
    utility_P: np.ndarray,
    seed: int,
) -> FactoredNetwork:
    """Train the paper's network on some pairs and keep its best weights on a tenth of them."""
    order = np.random.default_rng(seed).permutation(len(utility_P))
    num_held_out = round(HELD_OUT * len(order))
    held_out, training = (
        PairData(helped_P[part], helper_P[part], utility_P[part])
        for part in (order[:num_held_out], order[num_held_out:])
    )
    config = TrainingConfig(num_epochs=1, seed=seed, num_threads=THREADS)
    steps = -(-len(training) // config.batch_size)
    config = replace(config, num_epochs=max(1, STEPS // steps), patience=STEPS)
    network = InfluenceNetwork(helped_ED.shape[1], HIDDEN, seed=seed)
    train_network(network, helped_ED, helper_ED, training, held_out, config)
    return network.factored()


def _distances(teacher: DeliftTeacher, requests: Sequence[LabelRequest]) -> np.ndarray:
    """Return what the teacher measured, NaN where it could not."""
    return np.array(
        [one.value if isinstance(one, Measurement) else np.nan for one in teacher.measure(requests)]
    )
