"""A trained segmentation network, and the images that it takes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wsipipe.errors import check
from wsipipe.nn.checkpoint import Checkpoint, load_weights_of, read_checkpoint
from wsipipe.nn.encoders import Statistics, expect
from wsipipe.nn.segmenters import create_segmenter, encoder_of

SIDE_MULTIPLE_PX = 32
"""Encoders halve an image five times."""


def load_model(path: Path) -> tuple[Checkpoint, nn.Module]:
    """The network of a checkpoint, ready to predict."""
    checkpoint = read_checkpoint(path)
    model = create_segmenter(checkpoint.network, checkpoint.encoder, len(checkpoint.classes) + 1)
    load_weights_of(path, model)
    expect(encoder_of(model), Statistics(checkpoint.mean, checkpoint.std))
    return checkpoint, model.eval()


def check_side(side_px: int) -> None:
    """ConfigError unless a network takes images of this side."""
    check(
        side_px % SIDE_MULTIPLE_PX == 0,
        f"a patch or window of {side_px} px is not a multiple of {SIDE_MULTIPLE_PX} px, which the network needs; "
        "change --window of segment or --patch of tile",
    )
