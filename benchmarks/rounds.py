"""Cost of active-learning rounds: palkit's loop beside the naive one, same weights, same labels, one run.

    python benchmarks/rounds.py [--rounds 3] [--threads 2]

Naive: every round decodes and forwards the unlabelled, the labelled and the test rows separately, whole network,
adapters not merged; it trains through the whole network on freshly augmented images. Both start from the same
pretrained weights, buy the same labels (entropy, chosen by palkit's scores) and see the same augmented views, so
their metrics must agree, as far as tokens cached in half precision allow. With LoRA from block k of d on, both do the
arithmetic of the last d - k blocks for every row, so about d / (d - k) is the most that exact caching can gain; the
default has k = 4 of d = 8.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palkit.config import config_from_dict
from palkit.experiments.experiment import Learner, seed_of
from palkit.experiments.setting import setting, settle
from palkit.models.adapters import AdaptedModel, attach
from palkit.models.metrics import evaluate
from palkit.models.training import fit
from palkit.scoring.engine import ScoringConfig
from palkit.scoring.inputs import augmenter, seeded

BATCH = ScoringConfig().rows


class WholeNetwork(nn.Module):
    """The same adapted model, fed with pixels instead of cached tokens."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.backbone, self.head, self.model = model.backbone, model.head, model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            tokens = self.backbone.inputs(pixels, self.model.start_block)
        return self.model(tokens)

    def features(self, pixels: Tensor) -> Tensor:
        return self.forward(pixels)[0]

    def __getattr__(self, name: str) -> Any:
        """What else `fit` asks of a model: its config, logits and hooks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def naive_round(learner: Learner, positions: np.ndarray, number: int) -> Tensor:
    """(N + M, C) probabilities of pool and test rows after one naive round."""
    config, pool, backbone = learner.config, learner.here.pool, learner.here.backbone
    model = attach(backbone, config.adapter, len(pool.class_names), learner.mean, learner.std,
                   seed_of(config.seed, "adapter", 0))  # fmt: skip
    network: Any = WholeNetwork(model)
    rows = learner.pool_rows[positions]
    transform = augmenter(config.training.augmentation, backbone.config.image_size)
    pixels = backbone.preprocess(torch.from_numpy(pool.images.decode(rows, backbone.config.image_size)))
    views = torch.stack(
        [
            torch.stack([seeded(transform, pixels[i], (config.seed, int(row), view)) for i, row in enumerate(rows)])
            for view in range(config.training.views)
        ]
    )
    labels = learner.pool_labels[torch.from_numpy(positions)]
    fit(network, views, labels, config.training, seed_of(config.seed, "fit", number))
    network.eval()
    unlabelled = np.setdiff1d(np.arange(len(learner.pool_rows)), positions)
    test = pool.rows(config.evaluate_on)
    probs = torch.empty(len(learner.pool_rows) + len(test), len(pool.class_names))
    for target, part in (
        (unlabelled, learner.pool_rows[unlabelled]),
        (positions, rows),
        (len(learner.pool_rows) + np.arange(len(test)), test),
    ):
        chunks = []
        with torch.inference_mode():
            for chunk in np.array_split(part, range(BATCH, len(part), BATCH)):
                images = pool.images.decode(chunk, backbone.config.image_size)
                chunks.append(network(backbone.preprocess(torch.from_numpy(images)))[1].softmax(1))
        probs[torch.from_numpy(target)] = torch.cat(chunks)
    return probs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds, default config")
    print("adapter             round  naive s  palkit s  ratio  |accuracy diff|  |nll diff|  first-use cache s")
    cases: dict[str, dict[str, Any]] = {
        "linear_probe": {"adapter": "linear_probe"},
        "lora": {"adapter": "lora"},
        "lora, last 2 blocks": {"adapter": {"name": "lora", "start_block": -2}},
        "lora, 4 of 12": {"adapter": {"name": "lora", "start_block": 8}, "backbone.depth": 12},
    }
    total = {name: [0.0, 0.0] for name in cases}
    for case, adapter in cases.items():
        config = config_from_dict({**adapter, "strategy": "entropy"})
        here = setting(config)
        config = settle(config, here)
        began = time.perf_counter()
        learner = Learner(config, here)
        filled = time.perf_counter() - began
        positions = learner.first_batch(10)
        for number in range(options.rounds):
            began = time.perf_counter()
            model = learner.fit(positions, number)
            scores, eval_probs = learner.score_pool(model, number), learner.evaluate(model)
            ours_s = time.perf_counter() - began
            ours = evaluate(eval_probs, learner.eval_labels)
            began = time.perf_counter()
            probs = naive_round(learner, positions, number)
            naive_s = time.perf_counter() - began
            naive = evaluate(probs[len(learner.pool_rows) :], learner.eval_labels)
            total[case][0] += naive_s
            total[case][1] += ours_s
            gaps = [abs(ours[name] - naive[name]) for name in ("accuracy", "nll")]
            print(
                f"{case:19} {number:5d} {naive_s:8.1f} {ours_s:9.2f} {naive_s / ours_s:6.1f} "
                f"{gaps[0]:16.1e} {gaps[1]:11.1e} {filled:18.1f}"
            )
            positions = np.concatenate([positions, learner.next_batch(scores, positions, 10, number + 1)])
    for label, group in (*((name, [name]) for name in cases), ("the default sweep's two", ["linear_probe", "lora"])):
        naive_s, ours_s = (sum(total[name][part] for name in group) for part in (0, 1))
        print(f"{label}: {naive_s / ours_s:.1f} times")


if __name__ == "__main__":
    main()
