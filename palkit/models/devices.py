"""The device that computes: its choice, its memory, and its speed in each precision."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from palkit.errors import ConfigError, OutOfMemoryError, PalkitError, brief
from palkit.storage.files import cache_dir, short_hash, write_json

VARIABLE = "PALKIT_DEVICE"
MEMORY_VARIABLE = "PALKIT_MEMORY"
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CPU = torch.device("cpu")
Precision = Literal["float32", "bfloat16", "float64", "auto"]
RATED: tuple[Precision, ...] = ("float32", "bfloat16")  # float64 is never the faster one
PRECISIONS = (*RATED, "float64")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GENERATORS = threading.RLock()  # torch's global ones are of the process: a widget computes in a thread of its own
WORTH = 1.2  # bfloat16 changes the last digits: it must earn that
PROBE_SECONDS = 0.5


def choose_device(name: str | None = None) -> str:
    """`name`, else `$PALKIT_DEVICE`, else the fastest device there is: cuda, mps, cpu.

    Raises:
        ConfigError: the device asked for is not available here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    available = [kind for kind, count in counts.items() if count]
    chosen = name or os.environ.get(VARIABLE) or available[0]
    with suppress(RuntimeError, TypeError):
        device = torch.device(chosen)
        if (device.index or 0) < counts.get(device.type, 0):
            return chosen
    raise ConfigError(f"device {brief(chosen)} is not available on this machine; it has {', '.join(available)}.")


def device_name(device: torch.device | str) -> str:
    """Name of a device by its maker, with the number of threads if it is a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{device.type}, {model}, {torch.get_num_threads()} threads"


def memory_limit() -> int:
    """Bytes of cached inputs or scores that one process keeps in RAM: `$PALKIT_MEMORY` (as 4G), else a quarter of it.

    Larger arrays stay on disk and are streamed.

    Raises:
        ConfigError: the variable is not a number of bytes.
    """
    text = os.environ.get(MEMORY_VARIABLE, "").strip().upper().removesuffix("B")
    if text:
        number, factor = (text[:-1], UNITS[text[-1]]) if text[-1] in UNITS else (text, 1)
        with suppress(ValueError, OverflowError):  # what is left of them is no number, or not a finite one
            if (limit := int(float(number) * factor)) >= 0:
                return limit
        raise ConfigError(f"{MEMORY_VARIABLE}={os.environ[MEMORY_VARIABLE]!r} must be a size such as 500M or 4G.")
    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):  # there is no such file, or it says "max"
        limits.append(int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    return min(limits) // 4


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which products are computed in `precision`; for float64 see also `doubled`."""
    with _exact_cudnn(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        yield


def require_float64(device: torch.device) -> None:
    """Check that a device computes in float64.

    Raises:
        ConfigError: it does not.
    """
    if device.type == "mps":
        raise ConfigError("precision float64: this device (mps) has none. Use float32, or the CPU (PALKIT_DEVICE=cpu).")


@contextmanager
def seeded_globally(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Context in which torch's global generators start from a seed; one thread at a time, and put back afterwards.

    Layers, initial weights and image transforms know no other generator.

    Args:
        seed: of the CPU's generator and the device's.
        device: that is drawn on as well.
    """
    with GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # `manual_seed` alone would note for a GPU that nobody has woken who called, which takes milliseconds.
        (torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed)(seed)
        yield


@contextmanager
def doubled(model: nn.Module, precision: str) -> Iterator[None]:
    """Context in which all numbers of a model are float64, if that is the precision.

    Their last bits then hang on no processor: what float32 makes of them is the same everywhere.

    Raises:
        ConfigError: the model is on a device that has no float64.
    """
    if precision != "float64":
        yield
        return
    require_float64(next(model.parameters()).device)
    model.double()
    try:
        yield
    finally:
        model.float()


@contextmanager
def _exact_cudnn() -> Iterator[None]:
    """Keep cuDNN from cutting inputs of convolutions to 10 bits, and from choosing another algorithm each time."""
    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32, cudnn.deterministic
    except RuntimeError:  # torch refuses to say: somebody has set kinds of layers one by one, and means it
        yield
        return
    cudnn.allow_tf32, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before


@dataclass(frozen=True)
class Probe:
    """Measured forward speed of a network on a device, and what follows from it.

    Attributes:
        device: its name.
        rates: precision -> batch size -> images per second.
        precision: bfloat16 if it is at least WORTH times as fast as float32.
        batch_size: the smallest that reaches 95 % of the best rate in that precision.
    """

    device: str
    rates: Mapping[str, Mapping[int, float]]
    precision: Precision
    batch_size: int


def probe(
    name: str, forward: Callable[[Tensor], Tensor], image_size: int, device: torch.device, *, again: bool = False
) -> Probe:
    """Measure a network once per machine; later calls read the answer, so that what follows from it stays the same.

    Args:
        name: of the network and of all that its speed depends on.
        forward: (B, 3, S, S) pixels on `device` -> anything.
        image_size: S.
        device: where it runs.
        again: measure though there is an answer; the answer that is there stays.
    """
    machine = device_name(device)
    path = cache_dir() / "probes" / f"{short_hash([name, machine, torch.__version__])}.json"
    known: Probe | None = None
    with suppress(OSError, ValueError):  # there is no earlier measurement, or its file is damaged
        known = TypeAdapter(Probe).validate_json(path.read_bytes())
    if known is not None and not again:
        return known
    rates: dict[str, dict[int, float]] = {}
    for precision in RATED:
        with autocast(device, precision), torch.inference_mode():
            rates[precision] = _rates(forward, image_size, device)
    if not all(rates.values()):
        raise OutOfMemoryError(f"it does not fit into the memory of {machine}. Take a smaller network or image_size.")
    best = {precision: max(by.values()) for precision, by in rates.items()}
    precision = "bfloat16" if best["bfloat16"] >= WORTH * best["float32"] else "float32"
    batch_size = min(size for size, rate in rates[precision].items() if rate >= 0.95 * best[precision])
    result = Probe(machine, rates, precision, batch_size)
    if known is None:
        write_json(path, asdict(result))
    return result


def _rates(forward: Callable[[Tensor], Any], image_size: int, device: torch.device) -> dict[int, float]:
    sizes = (8, 32, 64, 128, 256) if device.type == "cpu" else (8, 64, 128, 256, 512, 1024)
    rates: dict[int, float] = {}
    for size in sizes:
        pixels = torch.rand(size, 3, image_size, image_size, device=device)
        try:
            rates[size] = rate(partial(forward, pixels), size, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
    return rates


def rate(call: Callable[[], Any], images: int, device: torch.device) -> float:
    """Images per second of a call that handles `images` of them: the best of as many as fit into half a second."""
    call()
    seconds, best = 0.0, float("inf")
    while seconds < PROBE_SECONDS:
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        took = time.perf_counter() - began
        seconds, best = seconds + took, min(best, took)
    return images / best


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, the CPU allocator or Python ran out of memory."""
    texts = ("can't allocate memory", "Cannot allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")
    what_else = ("could not create a primitive", "can't start new thread")  # all that oneDNN and Python say
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in texts + what_else)


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turn whatever is raised when memory runs out into an error that says what to do.

    Raises:
        OutOfMemoryError: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, PalkitError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"memory ran out ({str(error)[:200] or type(error).__name__}). Free some, take fewer jobs at a time or a "
            f"smaller backbone, image_size or pool_size, or set {MEMORY_VARIABLE} to keep less in memory; then start "
            "again, it goes on where it was."
        ) from error


def synchronize(device: torch.device) -> None:
    """Wait until everything that was queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def landing(device: torch.device) -> Callable[[], None]:
    """A call that waits until what is queued on the device by now is done, copies from it included.

    On CUDA it waits for no more than that.
    """
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event.synchronize
    return partial(synchronize, device)
