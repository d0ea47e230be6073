"""What a sweep will cost, before it is started: its grid, and time and memory from a measured probe."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import ceil, inf

import psutil
import torch
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

from palkit.config import ExperimentConfig, config_from_dict
from palkit.data import SPLITS, load_dataset, published_size, usual_size
from palkit.errors import DivergenceError, PalkitError, WeightsError
from palkit.experiments.dispatch import share_of_machine
from palkit.experiments.sweep import Sweep
from palkit.experiments.watch import duration
from palkit.models.adapters import AdaptedModel, attach, first_trained_block, merge
from palkit.models.backbones import EMBEDDED, Backbone, load_backbone
from palkit.models.devices import synchronize
from palkit.models.training import TrainingConfig, fit
from palkit.strategies import get_strategy

MEGABYTE = 2**20
PROBE_SECONDS = 3.0  # of a measured fit, about
HEAD_EPOCHS = 20
SAMPLE_SECONDS = 0.005
OVERHEAD_SECONDS = 2.0  # of a notebook in a warm kernel, see benchmarks/sweeps.py


@dataclass(frozen=True)
class Size:
    """Numbers of a data set as a run sees it.

    Attributes:
        pool, evaluated, total: images in the pool, in the evaluation split, and in all splits.
        classes: number of classes.
        counted: whether the data set is here and was counted; otherwise the numbers are as published.
    """

    pool: int
    evaluated: int
    total: int
    classes: int
    counted: bool


@dataclass(frozen=True)
class Cost:
    """Measured cost of the parts of a run.

    Attributes:
        prefix_s, suffix_s: seconds per image of the frozen blocks, and of the others in the scoring pass.
        head_s: seconds per epoch of the head alone, of one batch.
        train_s: seconds per image and epoch of head and adapter.
        base_mb: memory of the process (of the GPU on cuda) with the model in it, in MB (2^20 bytes).
        image_mb: that each image of a training batch adds.
        input_numbers: in one cached input.
        pretrained: whether it was measured with its own weights; random ones of the same shape cost the same.
    """

    prefix_s: float
    suffix_s: float
    head_s: float
    train_s: float
    base_mb: float
    image_mb: float
    input_numbers: int
    pretrained: bool


def expected(sweep: Sweep, device: str, jobs: int | None = None) -> Iterator[str]:
    """Lines of text: the grid, its size, and time and memory as far as a probe of each kind of run tells.

    Every distinct combination of backbone, adapter and training is measured in a process of its own, with as many
    threads as a run will have. Not in it: selection, stochastic passes, what runs cost each other at the memory bus.

    Args:
        sweep: the grid.
        device: for every run.
        jobs: runs at a time, as for `palkit.experiments.dispatch.run_sweep`.

    Raises:
        PalkitError: no config of the grid is valid, or a data set cannot be had and its size is not known.
    """
    configs, wrong = [], []
    for _, values in sweep.parameters():
        try:
            configs.append(config_from_dict(values))
        except PalkitError as error:
            wrong.append(error)
    if not configs:
        raise wrong[0]
    yield from _grid(sweep, configs)
    if wrong:
        yield f"{len(wrong)} runs are not valid, the first: {wrong[0]}"
    workers, threads = share_of_machine(jobs, len(configs), device)
    yield f"on {device}: {workers} runs at a time with {threads} thread{'s' if threads > 1 else ''} each"
    seconds, memory, caches = 0.0, 0.0, {}
    for members in _kinds(configs):
        first = members[0]
        try:
            with ProcessPoolExecutor(max_workers=1) as process:
                cost = process.submit(measure, first, device, threads, size_of(first).classes).result()
        except BrokenProcessPool as error:
            raise PalkitError(
                f"measuring {first.backbone.name} with {first.adapter.name} ended its process. Mostly memory is short: "
                "lower training.batch_size, or take a smaller backbone."
            ) from error
        spent = [run_seconds(config, size_of(config), cost) for config in members]
        megabytes = cost.base_mb + cost.image_mb * first.training.batch_size
        seconds, memory = seconds + sum(spent), max(memory, megabytes)
        width = 2 if first.scoring.cache_dtype == "float16" else 4
        for config in members:
            caches[config.dataset, config.pool_size, config.backbone, cost.input_numbers] = (
                size_of(config).total * cost.prefix_s,
                size_of(config).total * cost.input_numbers * width,
            )
        yield (
            f"  {first.backbone.name}, {first.adapter.name}: {len(members)} runs of {sum(spent) / len(spent):,.0f} s, "
            f"{_size_text(megabytes * MEGABYTE)}"
            f"{'' if cost.pretrained else ' (measured with random weights)'}"
        )
    embedding, stored = (sum(column) for column in zip(*caches.values(), strict=True))
    absent = sorted({config.dataset for config in configs if not size_of(config).counted})
    if absent:
        yield f"not on this machine, sizes as published: {', '.join(absent)}"
    yield f"caches: {_size_text(stored)} on disk, {duration(embedding / workers)} to fill"
    yield f"memory: {_size_text(workers * memory * MEGABYTE)} with {workers} runs at a time, besides cached inputs"
    yield f"time:   about {duration((embedding + seconds) / workers)} from nothing; what is complete is not repeated"


def _size_text(size: float) -> str:
    return f"{size / MEGABYTE:,.0f} MB" if size < 1024 * MEGABYTE else f"{size / MEGABYTE / 1024:,.1f} GB"


def _grid(sweep: Sweep, configs: list[ExperimentConfig]) -> Iterator[str]:
    rounds = sum(config.rounds for config in configs)
    yield f"sweep {sweep.name}: {len(configs)} runs, {rounds:,} rounds"
    for key, values in sweep.grid.items():
        yield f"  {key}: {', '.join('none' if value is None else str(value) for value in values)}"
    if sweep.variants:
        yield f"  variants: {', '.join(sweep.variants)}"
    for key, value in sweep.base.items():
        yield f"  {key} = {value}"


def _kinds(configs: list[ExperimentConfig]) -> list[list[ExperimentConfig]]:
    """Configs of one list cost the same per image and step."""
    kinds: dict[str, list[ExperimentConfig]] = {}
    for config in configs:
        key = [asdict(config.backbone), asdict(config.adapter), asdict(config.training), asdict(config.scoring)]
        kinds.setdefault(json.dumps(key), []).append(config)
    return list(kinds.values())


def size_of(config: ExperimentConfig) -> Size:
    """Numbers of the config's data set; published ones, without a download, if it is not here."""
    return _size(config.dataset, config.pool_size, config.evaluate_on)


@lru_cache(maxsize=64)
def _size(dataset: str, pool_size: int | str | None, evaluate_on: str) -> Size:
    published = published_size(dataset)
    if published is not None:
        splits, classes = published
    else:
        pool = load_dataset(dataset)
        splits = {name: len(pool.rows(name)) for name in SPLITS}
        classes = len(pool.class_names)
    rows = min(usual_size(pool_size, splits["pool"]) or splits["pool"], splits["pool"])
    total = rows + splits["val"] + splits["test"]
    return Size(rows, splits[evaluate_on], total, classes, counted=published is None)


def measure(config: ExperimentConfig, device: str, threads: int, classes: int) -> Cost:
    """Cost of a run's parts on this machine, from a few images of noise.

    Args:
        config: of which backbone, adapter and training count.
        device: cpu, cuda or mps.
        threads: of this process.
        classes: C.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone, pretrained = _backbone(config, device)
    start, size = first_trained_block(config.adapter, backbone.depth), config.backbone.image_size
    pixels = torch.rand(1, 3, size, size, device=backbone.device)
    with torch.inference_mode():
        whole = _seconds(lambda: backbone(pixels), backbone.device)
    # As many images as a fit of three epochs, each about three forward passes, has time for.
    images = max(2, min(config.training.batch_size, int(PROBE_SECONDS / (9 * whole))))
    pixels = pixels.expand(images, -1, -1, -1)
    with torch.inference_mode():
        prefix_s = _seconds(lambda: backbone.inputs(pixels, start), backbone.device) / images
        inputs = backbone.inputs(pixels, start)
    inputs = (inputs.clone() + 0.01 * torch.randn_like(inputs))[None]  # (1, L, ...), one view

    def model() -> AdaptedModel:
        zeros, ones = (torch.full((backbone.width,), value, device=backbone.device) for value in (0.0, 1.0))
        # No more classes than images: a fit that does not even reach guessing is ended early.
        return attach(backbone, config.adapter, min(classes, images), zeros, ones, 0)

    epochs = max(2, min(40, int(PROBE_SECONDS / (4 * images * whole))))  # enough to be told from noise
    attached = model()  # a copy of the backbone
    base = _memory(backbone.device)
    del attached
    memory = _Memory(backbone.device)
    with memory:
        short, head, both = (
            _fit_seconds(model(), inputs, config.training, epochs=more, head_epochs=head_epochs)
            for more, head_epochs in ((1, 1), (1, 1 + HEAD_EPOCHS), (1 + epochs, 1))
        )
    scorer = merge(model())
    with torch.inference_mode():
        suffix_s = _seconds(lambda: scorer(inputs[0]), backbone.device) / images
    return Cost(
        prefix_s=prefix_s,
        suffix_s=suffix_s,
        head_s=max(0.0, head - short) / HEAD_EPOCHS,
        train_s=max(0.0, both - short) / (epochs * images),
        base_mb=base / MEGABYTE,
        image_mb=max(0.0, memory.peak - base) / MEGABYTE / images,
        input_numbers=inputs[0, 0].numel(),
        pretrained=pretrained,
    )


def _backbone(config: ExperimentConfig, device: str) -> tuple[Backbone, bool]:
    """The backbone, and whether it has its own weights: gigabytes are not downloaded for an estimate."""
    if config.backbone.name == EMBEDDED or config.backbone.checkpoint is not None:
        with suppress(WeightsError):
            return load_backbone(config.backbone, device), True
    return load_backbone(config.backbone, device, pretrained=False), False


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of the second call: the first one pays for what is set up once."""
    took = 0.0
    for _ in range(2):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        took = time.perf_counter() - began
    return took


def _fit_seconds(
    model: AdaptedModel, inputs: torch.Tensor, training: TrainingConfig, *, epochs: int, head_epochs: int
) -> float:
    labels = torch.arange(inputs.shape[1], device=inputs.device) % model.head.out_features
    config = TrainingConfig(
        optimizer=training.optimizer,
        precision="float32" if training.precision == "auto" else training.precision,
        batch_size=training.batch_size,
        calibration=training.calibration,
        epochs=epochs,
        head_epochs=head_epochs,
    )
    best = inf
    for _ in range(3):
        began = time.perf_counter()
        with suppress(DivergenceError):  # noise need not be learnt
            fit(model, inputs, labels, config, 0)
        synchronize(inputs.device)
        best = min(best, time.perf_counter() - began)
        if best > PROBE_SECONDS / 3:
            break
    return best


def _memory(device: torch.device) -> float:
    """Bytes in use now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


class _Memory(threading.Thread):
    """Most bytes in use while its block is executed: what was needed to load a network is over by then."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.device, self.peak, self.over = device, 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, _memory(self.device))

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)


def run_seconds(config: ExperimentConfig, size: Size, cost: Cost) -> float:
    """Estimated seconds of a run, its inputs cached.

    Args:
        config: number of rounds, labels and epochs.
        size: of its data set.
        cost: as measured.
    """
    batch, training = config.batch_size or size.classes, config.training
    blind = get_strategy(config.strategy).blind and config.balance is None
    views = 1 if training.augmentation == "none" else training.views
    seconds = OVERHEAD_SECONDS
    for number in range(config.rounds):
        labels = batch * (number + 1)
        head = (
            training.head_epochs * (ceil(labels / training.batch_size) * cost.head_s) + views * labels * cost.suffix_s
        )
        fitting = head + training.epochs * labels * cost.train_s
        scored = size.evaluated + (0 if blind or number + 1 == config.rounds else size.pool)
        fits = 1 if config.adapter.name == "linear_probe" else 1 + training.temperature_folds
        seconds += views * batch * cost.prefix_s + fits * fitting + scored * cost.suffix_s
    return seconds
