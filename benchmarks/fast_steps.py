"""Steps of fine-tuning as Keras computes them and through `cvpipe.models.fast_steps`, in turns.

    python benchmarks/fast_steps.py

Same variables, same batch, same compiled step around both; EfficientNet-Lite0 at 224 pixels, whole
and behind three places, 32 images per step. *Folded* leaves the gradients of depthwise
filters as they are. Only ratios mean anything.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported: it halves its speed
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cvpipe.contender_sections import TrainingSection
from cvpipe.models import fast_steps, training
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.framework import set_threads
from cvpipe.models.heads import initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.transfer import (
    attach_trainable_head,
    learning_groups,
    part_network,
    unfreeze,
)

SPEC = BackboneSpec("efficientnet_lite0")
BATCH_SIZE = 32
THREADS = 2
SETTINGS = TrainingSection(learning_rate=1e-9)  # the weights hardly move, so all steps are alike


def main() -> None:
    """Print images per second and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", nargs="+", default=["", "block_05", "block_11", "block_15"])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    set_threads(THREADS)
    for point in arguments.points:
        compare(point, arguments.rounds)


def compare(point: str, rounds: int) -> None:
    """Time the steps of all sides behind a freeze point, or of the whole network."""
    model = attach_trainable_head(
        build_backbone(SPEC), *initial_head(1280, 2, 0), dropout=0.2, seed=0
    )
    _, tail = part_network(SPEC, model, point) if point else (None, model)
    rng = np.random.default_rng(0)
    shape = (BATCH_SIZE, *tail.input_shape[1:])
    inputs = rng.integers(0, 256, shape).astype(np.uint8)
    if point:
        inputs = rng.uniform(0, 3, shape).astype(np.float16)
    targets = rng.integers(0, 2, BATCH_SIZE).astype(np.int32)
    sides = {
        "keras": build_step(tail, lambda network: network),
        "folded": build_step(tail, folded_alone),
        "ours": build_step(tail, fast_steps.fast_twin),
    }
    for step in sides.values():  # traces it
        step(inputs, targets)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            started = time.perf_counter()
            float(step(inputs, targets)[0])
            seconds[name].append(time.perf_counter() - started)
    told = [f"{name} {BATCH_SIZE / min(times):.1f}" for name, times in seconds.items()]
    ratios = [
        f"{name} {min(seconds['keras']) / min(times):.2f} / "
        f"{np.median(np.divide(seconds['keras'], times)):.2f}"
        for name, times in seconds.items()
        if name != "keras"
    ]
    print(f"behind {point or 'nothing'}: images/s {', '.join(told)}")
    print(f"  times as fast as Keras, best / median: {', '.join(ratios)}", flush=True)


def folded_alone(network: Any) -> Any:
    """Fold the normalisations, and leave the gradients as they are."""
    columns, fast_steps.MAX_COLUMNS = fast_steps.MAX_COLUMNS, 99
    try:
        return fast_steps.fast_twin(network)
    finally:
        fast_steps.MAX_COLUMNS = columns


def build_step(tail: Any, twin: Callable[[Any], Any]) -> Callable[..., Any]:
    """Compile a step of ours around another network."""
    groups = learning_groups(unfreeze(tail, norms=False), 0.1)
    optimizers = [training.build_optimizer(SETTINGS, group) for group in groups]
    usual, training.fast_twin = training.fast_twin, twin
    try:
        step = training.compile_step(tail, groups, optimizers, build_loss("cross_entropy", 2))
    finally:
        training.fast_twin = usual
    return step


if __name__ == "__main__":
    main()
