"""CAMEL's head: features are standardised by fixed statistics, which belong to its weights."""

from __future__ import annotations

import torch

from wsipipe.pseudolabel.methods.camel.network import Head


def test_the_head_standardises_features_before_it_weighs_them():
    features = torch.randn(200, 5) * 7 + 3
    head = Head(5, 2)
    head.standardise(features)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(2, 5))
        head.linear.bias.zero_()
        out = head(features)
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(2), atol=1e-5, rtol=0)


def test_a_feature_that_never_changes_does_no_harm():
    features = torch.cat([torch.randn(50, 1), torch.full((50, 1), 4.0)], 1)
    head = Head(2, 1)
    head.standardise(features)
    assert bool(torch.isfinite(head(features)).all())


def test_the_statistics_of_the_head_belong_to_its_weights():
    head = Head(3, 1)
    head.standardise(torch.randn(20, 3) + 5)
    other = Head(3, 1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.mean, head.mean)
    assert float(other.mean.mean()) > 3
