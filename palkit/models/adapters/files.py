"""Adapter folders, which hold what was learnt as safetensors, in peft's own format where peft has the method."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from palkit.errors import WeightsError
from palkit.models.adapters import AdaptedModel, adapter_parameters
from palkit.models.adapters.peft_layers import NAME, quiet_peft
from palkit.storage.files import atomic_path, read_json, sha256, storing, write_json

# The names are peft's.
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
# Ours: trained tensors by timm's names, for methods without peft; and the head.
BACKBONE_WEIGHTS = "backbone.safetensors"
HEAD_WEIGHTS = "head.safetensors"
CLASSES = "classes.json"  # names, where they are known
CHECKSUMS = "checksums.json"  # SHA-256 of each of these

HEAD_NAMES = ("head.weight", "head.bias", "feature_mean", "feature_std", "temperature")
TIMM_PREFIX = "backbone.vit."
PEFT_PREFIX = "base_model.model."
# What pruning found and when, and who wrote the file: not part of what a fresh adapter must agree on.
NOT_COMPARED = {"rank_pattern", "total_step", "tinit", "tfinal", "peft_version"}


def save_adapter(model: AdaptedModel, folder: Path, class_names: Sequence[str] = ()) -> None:
    """Write what was learnt (adapter, head), feature statistics and temperature. The same model gives the same bytes.

    `peft.PeftModel.from_pretrained(vit, folder)` loads the adapter of a peft method into timm's model, cut to the same
    depth; `palkit.models.adapters.qkv` prepares models whose qkv map was split, or is an Eva model's with a bias.

    Args:
        model: merged or not.
        folder: is made if it does not exist; an adapter in it is replaced.
        class_names: of the head's outputs, to be stored beside it.
    """
    model.tuner.finish()
    folder = Path(folder)
    # Removed first and written last: its presence means that all is there.
    with storing(folder):
        (folder / HEAD_WEIGHTS).unlink(missing_ok=True)
    if model.tuner.peft is None:
        files = {BACKBONE_WEIGHTS: _packed(_timm_state(model))}
    else:
        text = json.dumps(_peft_config(model), indent=2, sort_keys=True) + "\n"
        files = {PEFT_CONFIG: text.encode(), PEFT_WEIGHTS: _packed(_peft_state(model))}
    if class_names:
        files[CLASSES] = json.dumps(list(class_names)).encode()
    files[HEAD_WEIGHTS] = _packed(_head_state(model))
    write_json(folder / CHECKSUMS, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    for name, content in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)


def adapter_is_saved(folder: Path) -> bool:
    """Whether `save_adapter` finished in this folder."""
    return (Path(folder) / HEAD_WEIGHTS).is_file()


@torch.no_grad()
def load_adapter(model: AdaptedModel, folder: Path) -> AdaptedModel:
    """Load what `save_adapter` wrote, in place.

    Args:
        model: freshly attached, of the same configuration.
        folder: with a complete adapter.

    Raises:
        WeightsError: the folder is incomplete, damaged, or holds the adapter of another configuration.
    """
    folder = Path(folder)
    if not adapter_is_saved(folder):
        raise WeightsError(f"{folder} holds no complete adapter ({HEAD_WEIGHTS} is missing). Run the experiment again.")
    _verify(folder)
    if model.tuner.peft is None:
        _copy(_timm_state(model), _read(folder, BACKBONE_WEIGHTS), folder)
    else:
        _load_peft(model, folder)
    _copy(_head_state(model), _read(folder, HEAD_WEIGHTS), folder)
    return model


def saved_classes(folder: Path) -> tuple[str, ...] | None:
    """Names of the classes of a saved adapter; None if they were not stored, as in folders of earlier versions.

    Raises:
        WeightsError: a file in the folder is damaged.
    """
    _verify(folder)
    path = Path(folder) / CLASSES
    return tuple(json.loads(path.read_text())) if path.exists() else None


def _head_state(model: AdaptedModel) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name] for name in HEAD_NAMES}


def _timm_state(model: AdaptedModel) -> dict[str, Tensor]:
    """Trained tensors of the backbone by timm's names."""
    return {name.removeprefix(TIMM_PREFIX): value.detach() for name, value in adapter_parameters(model).items()}


def _peft_state(model: AdaptedModel) -> dict[str, Tensor]:
    """Adapter tensors by the names of peft's files. PiSSA becomes a LoRA of twice the rank on the untouched weights."""
    from peft import get_peft_model_state_dict

    with quiet_peft():
        state = get_peft_model_state_dict(model.tuner.peft)
    for name, initial in model.tuner.initial.items():
        # W - s B0 A0 + s B A = W + s [B, -B0] [A; A0] (Meng et al. 2024, appendix on conversion).
        stacked = (initial, 0) if ".lora_A." in name else (-initial, 1)
        state[name] = torch.cat([state[name], stacked[0].to(state[name])], dim=stacked[1])
    return state


def _peft_config(model: AdaptedModel) -> dict[str, Any]:
    """peft's configuration as JSON values, without anything of this machine."""
    assert model.tuner.peft is not None
    config = model.tuner.peft.peft_config[NAME].to_dict()
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    values["inference_mode"] = True
    if model.tuner.initial:
        values |= {"r": 2 * values["r"], "lora_alpha": 2 * values["lora_alpha"], "init_lora_weights": True}
    return values


def _load_peft(model: AdaptedModel, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    state = _read(folder, PEFT_WEIGHTS)
    with _undamaged(folder / PEFT_CONFIG):
        saved = read_json(folder / PEFT_CONFIG)
    expected = _peft_config(model)
    _refuse(folder, [key for key in saved.keys() & expected.keys() - NOT_COMPARED if saved[key] != expected[key]])
    peft: Any = model.tuner.peft
    if model.config.name == "adalora":  # its layers shrink to the ranks that are left
        _refuse(folder, [] if "rank_pattern" in saved and _is_rank_pattern(saved["rank_pattern"]) else ["rank_pattern"])
        peft.peft_config[NAME].rank_pattern = saved["rank_pattern"]
    _refuse(folder, _differences(_peft_state(model), state))
    if model.tuner.initial:
        state = _restore_pissa(model, state)
    set_peft_model_state_dict(peft, state)


def _is_rank_pattern(value: Any) -> bool:
    """Whether it says of every layer which ranks are left; None and nothing before any were pruned."""
    if not isinstance(value, dict):
        return value is None
    return all(isinstance(kept, list) and all(isinstance(one, bool) for one in kept) for kept in value.values())


def _restore_pissa(model: AdaptedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the base weights the file's start in place of the model's own; the trained half of the file is left.

    A singular vector has no sign of its own, so another machine may have started from others.
    """
    trained, initial = {}, {}
    for name, tensor in state.items():
        halves = tensor.chunk(2, dim=0) if ".lora_A." in name else tensor.chunk(2, dim=1)
        trained[name] = halves[0].contiguous()
        initial[name] = halves[1] if ".lora_A." in name else -halves[1]
    for name in (name for name in initial if ".lora_A." in name):
        layer: Any = model.backbone.vit.get_submodule(name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight"))
        weight = layer.get_base_layer().weight
        for start, sign in ((model.tuner.initial, 1), (initial, -1)):
            update = start[name.replace(".lora_A.", ".lora_B.")] @ start[name]
            weight += sign * layer.scaling[NAME] * update.to(weight)
    model.tuner.initial = initial
    return trained


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Names that only one has, or that have another shape."""
    other = expected.keys() ^ found.keys()
    return [*other, *(name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape)]


def _refuse(folder: Path, differences: list[str]) -> None:
    if differences:
        some = ", ".join(sorted(differences)[:3])
        raise WeightsError(f"{folder} was saved from another adapter or backbone: {some} differ or are missing.")


def _copy(target: dict[str, Tensor], source: dict[str, Tensor], folder: Path) -> None:
    _refuse(folder, _differences(target, source))
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _packed(state: dict[str, Tensor]) -> bytes:
    # One key only: several are written in random order, and the file must be the same everywhere.
    return save({name: tensor.cpu().contiguous() for name, tensor in state.items()}, {"format": "pt"})


def _verify(folder: Path) -> None:
    """Compare every file with its checksum, if there are checksums: older folders have none."""
    if not (folder / CHECKSUMS).exists():
        return
    with _undamaged(folder / CHECKSUMS):
        checksums = read_json(folder / CHECKSUMS)
    for name, expected in checksums.items():
        with _undamaged(folder / name):
            if sha256(folder / name) != expected:
                raise ValueError("its checksum does not fit its content")


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    _refuse(folder, [] if (folder / name).is_file() else [name])
    with _undamaged(folder / name):
        state = load_file(folder / name)
        for key, tensor in state.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{key} is not finite")
    return state


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Context that reads a file; says that it is damaged where that fails."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}. Delete {path.parent} and fit again.") from error
