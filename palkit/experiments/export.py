"""A fitted model as a folder that timm alone loads, and the Hugging Face hub shows; nothing is sent anywhere."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from palkit.errors import ConfigError
from palkit.experiments.classifier import Classifier
from palkit.models.adapters import AdaptedModel, merge
from palkit.models.adapters.qkv import SplitQKV
from palkit.models.backbones import EMBEDDED, EMBEDDED_ARCHITECTURE, Backbone
from palkit.storage.files import storing, write_text
from palkit.storage.formats import write_table

POOLS = {"mean": "avg", "cls": "token"}  # timm's names
NEAR = 1e-3  # of the largest logit: merging and folding round
CARD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- timm
- active-learning
- palkit
license: other
---
# {classes} classes

{architecture}, {blocks} blocks, images of {size} pixels; fitted with {adapter} by palkit. Weights of the backbone are
those of {backbone}, whose licence holds for these too. The images are not in this folder.

```python
import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
model(transform(image)[None]).softmax(1)  # classes: model.pretrained_cfg["label_names"]
```

- Classes: {names}.
- Labels: {labels}.
- Measured on held-out images at the end: {metrics}.

Labels were chosen by a strategy, not drawn at random: their shares are not those of the pool, and what is measured on
them says nothing about other images. Nobody has tested the model on other data than its own.
"""


def export_model(
    model: Classifier, folder: Path | str, labels: pd.DataFrame | None, metrics: Mapping[str, float]
) -> Path:
    """Write weights (safetensors), timm's config, labels and a model card.

    Adapter, feature statistics and temperature are folded into the weights, and the folder is loaded again and compared
    before it is called done.

    Args:
        model: of a run or a session.
        folder: to make, see `empty_folder`.
        labels: that it was fitted to, with the columns id and label; None where they are not known.
        metrics: of its last round; empty where nothing was measured.

    Returns:
        The folder.

    Raises:
        ConfigError: timm's network cannot compute what this model does, as with prompts or "cls+mean" pooling.
    """
    import timm
    from timm.models import Eva

    config, backbone, folder = model.config.backbone, model.backbone, empty_folder(folder)
    name = EMBEDDED_ARCHITECTURE if config.name == EMBEDDED else config.name
    for what, unfit in {
        "a model of stored features": not backbone.depth,
        f"pooling {config.pooling!r}": config.pooling not in POOLS,
        "prompts": model.config.adapter.name == "vpt",
    }.items():
        if unfit:
            raise ConfigError(f"timm has no network that computes {what}; keep the model by `Classifier.save` instead.")
    fitted = merge(copy.deepcopy(model.model)).cpu().eval()
    normed = not isinstance(backbone.vit.norm, nn.Identity)  # tokens, before they are pooled
    own = {"use_fc_norm": False, "use_post_transformer_norm": normed}
    build: dict[str, Any] = {
        "img_size": config.image_size,
        "depth": backbone.depth,
        "global_pool": POOLS[config.pooling],
        **(own if isinstance(backbone.vit, Eva) else {"fc_norm": False, "final_norm": normed}),
    }
    state = _plain(fitted.backbone).state_dict() | _folded_head(fitted)
    try:
        net = timm.create_model(name, num_classes=len(model.class_names), **build).eval()
        net.load_state_dict({key: state[key] for key in net.state_dict()})
    except (AssertionError, TypeError, KeyError) as error:
        raise ConfigError(
            f"timm's {name} cannot be built as this model is ({error}); keep it by `Classifier.save`."
        ) from error
    timm.models.save_for_hf(
        net,
        str(folder),
        model_config={
            "label_names": list(model.class_names),
            "pretrained_cfg": {"tag": "palkit", "license": "other"},
        },
        model_args=build,
        safe_serialization=True,
        data_config={
            "input_size": (3, config.image_size, config.image_size),
            "mean": tuple(backbone.mean.flatten().tolist()),
            "std": tuple(backbone.std.flatten().tolist()),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
        },
    )
    _check_equal(fitted, timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval(), name)
    told = "not stored with the model"
    if labels is not None:
        write_table(labels, folder / "labels.parquet")
        told = f"{len(labels)} in `labels.parquet`, chosen by {model.config.strategy}"
    shown = [f"{key} {metrics[key]:.3f}" for key in ("accuracy", "balanced_accuracy", "nll") if key in metrics]
    text = CARD.format(
        classes=len(model.class_names),
        labels=told,
        architecture=name,
        blocks=backbone.depth,
        size=config.image_size,
        adapter=model.config.adapter.name,
        backbone=config.name,
        names=", ".join(f"`{json.dumps(name, ensure_ascii=False)}`" for name in model.class_names),
        metrics=", ".join(shown) or "nothing",
    )
    write_text(folder / "README.md", text)
    return folder


def empty_folder(folder: Path | str) -> Path:
    """The folder, made if it is not there.

    Raises:
        ConfigError: there is something in it, which nobody may want to lose.
        StorageError: it cannot be made.
    """
    folder = Path(folder)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty. Name a folder that is not there yet.")
    return folder


def _plain(backbone: Backbone) -> nn.Module:
    """The network without peft's wrappers and with whole qkv maps, in place; all updates are in its weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    vit = backbone.vit
    for name, module in list(vit.named_modules()):
        if isinstance(module, BaseTunerLayer):
            if not module.merged:  # a norm, see `merge`
                module.merge()
            vit.set_submodule(name, module.get_base_layer())
    for name, module in list(vit.named_modules()):
        if isinstance(module, SplitQKV):
            vit.set_submodule(name, _fused(module))
    return vit


def _fused(split: SplitQKV) -> nn.Linear:
    """One map that computes what three do."""
    parts = [split.q, split.k, split.v]
    whole = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), parts[0].bias is not None)
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(torch.cat([getattr(part, name) for part in parts]))
    return whole


@torch.no_grad()
def _folded_head(model: AdaptedModel) -> dict[str, Tensor]:
    """Weights of the head on features as they are, with their statistics and the temperature in it."""
    weight = model.head.weight.double() / model.feature_std.double() / model.temperature.double()
    bias = model.head.bias.double() / model.temperature.double() - weight @ model.feature_mean.double()
    return {"head.weight": weight.float(), "head.bias": bias.float()}


@torch.no_grad()
def _check_equal(model: AdaptedModel, net: nn.Module, name: str) -> None:
    """ConfigError if timm's network says something else about some pixels."""
    size = model.backbone.config.image_size
    pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    mine, theirs = model(model.backbone.inputs(pixels, model.start_block))[1], net(pixels)
    if not torch.allclose(mine, theirs, atol=NEAR * float(mine.abs().max()), rtol=0):
        raise ConfigError(f"timm's {name} does not compute what this model does; keep it by `Classifier.save` instead.")
