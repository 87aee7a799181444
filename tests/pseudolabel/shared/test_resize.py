"""Resizing: uniform maps stay, and antialiasing averages."""

from __future__ import annotations

import torch

from wsipipe.pseudolabel.shared.resize import resize


def test_resizing_keeps_what_is_uniform():
    maps = torch.rand(2, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(resize(maps, (11, 7)), maps[:, :, :1, :1].expand(2, 3, 11, 7))


def test_antialiasing_sees_every_cell():
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 0, 0] = 1.0
    assert float(resize(maps, (2, 2))[0, 0, 0, 0]) == 0
    assert float(resize(maps, (2, 2), antialias=True)[0, 0, 0, 0]) > 0
