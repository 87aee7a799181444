"""Checkpoints: weights as safetensors, and a JSON beside them that says how to use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsipipe.errors import CheckpointError
from wsipipe.runtime.atomic import replacing, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """How a set of weights is to be used. `mpp` in um/px; `mean`, `std` of RGB in 0..1.

    network: the architecture (`encoder` for an encoder alone). digest: of all that it was trained on. settings: the
    options of the stage that made it. normalise_stain: whether a fit or a network saw slides with normalised stain (an
    encoder may serve either).
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
    normalise_stain: bool = False

    def save(self, folder: Path, model: nn.Module, name: str = "model") -> Path:
        """Write `<name>.safetensors`, then `<name>.json`, each atomically; returns the path of the JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / f"{name}.safetensors", model)
        path = folder / f"{name}.json"
        write_json(path, {"kind": "checkpoint", "schema": SCHEMA, **asdict(self)})
        return path


def save_weights(path: Path, model: nn.Module) -> None:
    """Write weights and buffers of a model as safetensors, atomically."""
    with replacing(path) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, partial)


def digest_of(model: nn.Module) -> str:
    """Digest of the weights and buffers of a model."""
    made = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        made.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return made.hexdigest()[:32]


def read_checkpoint(path: Path) -> Checkpoint:
    """The JSON of a checkpoint: `path` is the JSON, its safetensors, or their folder."""
    path = path / "model.json" if path.is_dir() else path.with_suffix(".json")
    try:
        data = json.loads(path.read_text())
        if data.pop("kind") != "checkpoint" or data.pop("schema") != SCHEMA:
            raise KeyError("kind")
        for key in ("classes", "mean", "std"):
            data[key] = tuple(data[key])
        data["normalise_stain"] = data.pop("even_stain", data.get("normalise_stain", False))  # its name before 0.1.0
        return Checkpoint(**data)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no checkpoint here; train one with: wsipipe segment") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"{path}: not a checkpoint of this version of wsipipe") from None


def maker_of(weights: Path) -> Checkpoint | None:
    """The checkpoint that a weights file belongs to; None if wsipipe did not make it."""
    try:
        return read_checkpoint(weights)
    except CheckpointError:
        return None


def weights_file(path: Path) -> Path:
    """The weights file of `path`: a checkpoint's folder, its JSON, or the file itself."""
    if path.is_dir():
        found = [path / n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).is_file()]
        return found[0] if found else path / "model.safetensors"
    return path.with_suffix(".safetensors") if path.suffix == ".json" else path


def weights_digest(path: Path | None) -> str:
    """Digest of a weights file, "" without one; CheckpointError if the file does not exist."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(weights_file(path).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{weights_file(path)}: no such weights file ({error.strerror})") from None


def fitting_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in a file (safetensors, or a state dict of torch) under the names of `wanted`.

    All names may share a prefix. If several complete sets exist, the teacher's is used, as DINO does. Only batch
    counters may be missing. Raises CheckpointError if other weights are missing or have another shape.
    """
    path = weights_file(path)
    state = _read_state(path)
    first = next(iter(wanted))
    starts = {k.removesuffix(first) for k in state if k == first or k.endswith(f".{first}")} or {""}
    needed = [k for k in wanted if not k.endswith("num_batches_tracked")]
    missing = {start: [k for k in needed if start + k not in state] for start in starts}
    whole = sorted(start for start in starts if not missing[start])
    if len(whole) > 1:
        whole = [s for s in whole if not s] or [s for s in whole if "teacher" in s] or whole
        if len(whole) > 1:
            raise CheckpointError(f"{path}: holds several encoders ({', '.join(whole)}); keep one of them in the file")
    start = whole[0] if whole else min(sorted(starts), key=lambda s: len(missing[s]))
    found = {k: state[start + k] for k in wanted if start + k in state}
    shapes = [k for k, v in found.items() if v.shape != wanted[k].shape]
    if missing[start] or shapes:
        absent = f"{len(missing[start])} weights missing" + (f" under {start!r}" if start else "")
        raise CheckpointError(
            f"{path}: does not fit this encoder ({absent}, {len(shapes)} of another shape, "
            f"first: {(missing[start] + shapes)[0]}); check --encoder"
        )
    return found


def _read_state(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a weights file; names of nested mappings are joined by dots."""
    try:
        if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
            return dict(_flat(torch.load(path, map_location="cpu", weights_only=True)))
        state: dict[str, Tensor] = load_file(path)
        return state
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such weights file") from None
    except Exception as error:  # noqa: BLE001 - unpickling damaged bytes raises exceptions of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a safetensors file or a plain state dict of torch ({reason}); convert it first"
        ) from None


def _flat(tree: Any, start: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield start, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{start}.{key}" if start else str(key))


def load_weights_of(path: Path, model: nn.Module) -> None:
    """Load the safetensors of checkpoint `path` into `model`; every weight must fit."""
    path = path / "model.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the weights are missing beside their JSON") from None
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights do not fit ({str(error).splitlines()[0]})") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
