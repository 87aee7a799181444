"""Evaluation mode for a block: every module is afterwards in its old mode, whatever happens inside."""

from __future__ import annotations

import pytest
from torch import nn

from wsipipe.pseudolabel.shared.evaluation_mode import evaluation_mode


def test_modules_return_to_their_mode_even_after_an_error():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)).train()
    network[1].eval()

    def fail() -> None:
        with evaluation_mode(network):
            assert not any(m.training for m in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in (network, *network)] == [True, True, False]
