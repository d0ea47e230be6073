"""A diagnosis of this machine: what it is, how fast it is, and what palkit would choose on it."""

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from palkit.config import ExperimentConfig
from palkit.experiments.setting import measured, probe_backbone, setting
from palkit.models.devices import WORTH, Probe, device_name, memory_limit, rate
from palkit.scoring.engine import ScoringConfig
from palkit.storage.files import cache_dir, runs_dir

GIGABYTE = 2**30


def diagnose(config: ExperimentConfig, device: str, *, compile: bool = False) -> Iterator[tuple[str, str]]:
    """Findings, name and text, each as soon as it is known.

    Args:
        config: its data set and backbone are measured.
        device: cpu, cuda or mps.
        compile: also measure what torch.compile gains and costs (a minute on a CPU).

    Raises:
        PalkitError: data or weights cannot be had.
    """
    yield "torch", f"{torch.__version__}, device {device}: {device_name(device)}, {os.cpu_count()} CPUs"
    memory = psutil.virtual_memory()
    yield (
        "memory",
        f"{memory.available / GIGABYTE:.1f} of {memory.total / GIGABYTE:.1f} GB free; inputs and scores up to "
        f"{memory_limit() / GIGABYTE:.1f} GB are kept in RAM, larger ones are streamed from disk (PALKIT_MEMORY)",
    )
    for name, folder in {"caches": cache_dir(), "runs": runs_dir()}.items():
        folder.mkdir(parents=True, exist_ok=True)
        yield name, f"{folder}, {shutil.disk_usage(folder).free / GIGABYTE:.0f} GB free"
    here = setting(config, device)
    backbone = here.backbone
    if not backbone.depth:
        yield "backbone", f"none: the data set holds {backbone.width} features of each image"
        return
    size = backbone.config.image_size
    yield (
        "backbone",
        f"{backbone.config.name}, {backbone.depth} blocks, {size} px, {backbone.tokens} tokens, "
        f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.1f} M parameters",
    )
    found = probe_backbone(config.backbone, device, again=True)
    for precision, rates in found.rates.items():
        yield precision, "images/s by batch size: " + ", ".join(f"{size}: {rate:,.0f}" for size, rate in rates.items())
    chosen = measured(ScoringConfig(precision="auto", batch_size=None), config.backbone, device)
    yield (
        "chosen",
        f"precision {chosen.precision} (bfloat16 must be {WORTH:g} times as fast), batches of {chosen.batch_size}: "
        "what scoring.precision=auto scoring.batch_size=null stand for here, as measured the first time",
    )
    uses = here.cache.config
    yield "this config", f"scoring.precision={uses.precision} scoring.batch_size={uses.batch_size}"
    if compile:
        yield "compile", _compile_gain(backbone, found, size)


def _compile_gain(backbone: Any, found: Probe, size: int) -> str:
    pixels = torch.rand(found.batch_size, 3, size, size, device=backbone.device)
    with torch.inference_mode():
        began = time.perf_counter()
        forward = torch.compile(backbone)
        forward(pixels)
        start = time.perf_counter() - began
        plain = rate(lambda: backbone(pixels), len(pixels), backbone.device)
        fast = rate(lambda: forward(pixels), len(pixels), backbone.device)
    gain = fast / plain
    if gain <= 1:
        return f"torch.compile does not pay here: {gain:.2f} times the speed, {start:.0f} s to start"
    pays = start / (1 / plain - 1 / fast)
    return f"{gain:.2f} times the speed of eager, {start:.0f} s to start: pays from {pays:,.0f} images on"
