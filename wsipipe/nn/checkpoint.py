"""Checkpoints: weights as safetensors with a JSON beside it that says what they are for."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from wsipipe.errors import CheckpointError
from wsipipe.runtime import write_json

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """What weights need to be used rightly. `mpp` in um/px; `mean`, `std` of RGB in 0..1.

    `network` names the architecture, `digest` all that it was trained on, `settings` what else its maker needs.
    """

    network: str
    encoder: str
    classes: tuple[str, ...]
    mpp: float
    patch_px: int
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, object]

    def save(self, folder: Path, model: nn.Module, name: str = "model") -> Path:
        """Write `<name>.safetensors` and then `<name>.json`, each aside and renamed; returns the JSON's path."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / f"{name}.safetensors", model)
        path = folder / f"{name}.json"
        write_json(path, {"kind": "checkpoint", "schema": SCHEMA, **asdict(self)})
        return path


def save_weights(path: Path, model: nn.Module) -> None:
    """Weights and buffers of a model as safetensors, written aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, aside)
    os.replace(aside, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """The JSON of a checkpoint: `path` is the JSON, its safetensors, or their folder."""
    path = path / "model.json" if path.is_dir() else path.with_suffix(".json")
    try:
        data = json.loads(path.read_text())
        if data.pop("kind") != "checkpoint" or data.pop("schema") != SCHEMA:
            raise KeyError("kind")
        for key in ("classes", "mean", "std"):
            data[key] = tuple(data[key])
        return Checkpoint(**data)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no checkpoint here; train one with: wsipipe segment") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: not a checkpoint of this version of wsipipe") from None


def load_weights_of(path: Path, model: nn.Module) -> None:
    """Load the safetensors that belongs to checkpoint `path` into `model`; every weight must fit."""
    path = path / "model.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the weights are missing beside their JSON") from None
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights do not fit ({str(error).splitlines()[0]})") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
