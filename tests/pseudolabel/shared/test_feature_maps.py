"""Feature maps of encoders: their strides, and encoders without any."""

from __future__ import annotations

import pytest
from torch import nn

from wsipipe.errors import ConfigError
from wsipipe.nn.encoders import create_encoder
from wsipipe.pseudolabel.shared.feature_maps import feature_strides


def test_the_strides_of_a_resnet_double_from_stage_to_stage():
    assert feature_strides(create_encoder("resnet18_quarter")) == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("info", [None, [], [{"reduction": 8}]])
def test_an_encoder_without_feature_maps_is_refused(info: object):
    encoder = nn.Linear(3, 3)
    encoder.feature_info = info
    with pytest.raises(ConfigError, match="encoder Linear gives no feature maps; choose another --encoder"):
        feature_strides(encoder)
