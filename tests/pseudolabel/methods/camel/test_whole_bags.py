"""Whole bags: gradient through the selected instance alone, the same as pushed through everything; the two weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.textures import tiled_pictures, tissue
from torch import Tensor, nn

from wsipipe.geometry import Window
from wsipipe.nn.encoders import create_encoder
from wsipipe.nn.train import Schedule
from wsipipe.pseudolabel.bags import Bag
from wsipipe.pseudolabel.instance_grid import InstanceGrid
from wsipipe.pseudolabel.methods.camel.network import InstanceClassifier
from wsipipe.pseudolabel.methods.camel.rules import SelectionRule, bag_loss, max_max, max_min
from wsipipe.pseudolabel.methods.camel.whole_bags import MAX_INSTANCES, WholeBags, whole_bag_loss
from wsipipe.pseudolabel.shared.classifier import ClassifierTraining, train_classifier
from wsipipe.pseudolabel.shared.evaluation_mode import evaluation_mode
from wsipipe.runtime.device import ComputeContext
from wsipipe.store import SlideStore

CPU = torch.device("cpu")
BOTH = [max_max, max_min]


def network(seed: int = 0) -> InstanceClassifier:
    """A network with batch normalisation that has seen something, so that its statistics are not 0 and 1."""
    torch.manual_seed(seed)
    model = InstanceClassifier(create_encoder("resnet18_quarter"), 128, 2).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # else the residual branches begin at zero
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
    return model


def crops(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rule", BOTH)
def test_the_two_passes_give_the_loss_and_gradient_of_one_pass_through_everything(rule: SelectionRule):
    """The slow reference: all instances with gradient, statistics fixed."""
    model = network()
    bags, labels = [crops(6), crops(9, 2)], [torch.tensor([1, 0]), torch.tensor([0, 0])]
    fast = whole_bag_loss(model, bags, labels, [[rule], [rule]])
    got = gradients(model, fast)
    model.eval()
    slow = torch.stack([bag_loss(model(x), y, rule) for x, y in zip(bags, labels, strict=True)]).mean()
    wanted = gradients(model, slow)
    assert float(fast.detach()) == pytest.approx(float(slow.detach()), rel=1e-4)
    for k, g in wanted.items():
        torch.testing.assert_close(got[k], g, rtol=2e-3, atol=1e-5, msg=k)


def test_the_gradient_reaches_exactly_one_instance():
    model = network()
    x = crops(8).requires_grad_()
    whole_bag_loss(model, [x], [torch.tensor([1, float("nan")])], [[max_max]]).backward()
    model.eval()
    with torch.no_grad():
        picked = int(model(x)[:, 0].argmax())
    assert torch.nonzero(x.grad.abs().sum((1, 2, 3))).ravel().tolist() == [picked]


def test_with_statistics_of_the_batch_the_two_passes_would_not_agree():
    """Why they are fixed: in training mode a lone instance is another instance than in company."""
    model = network()
    x = crops(16)
    with torch.no_grad():
        together, alone = model(x), model(x[:2])
    assert float((together[:2] - alone).abs().max()) > 1e-2


def test_statistics_are_left_as_they_were_and_training_goes_on():
    model = network()
    before = {k: v.clone() for k, v in model.named_buffers()}
    whole_bag_loss(model, [crops(5)], [torch.tensor([0, 1])], [BOTH])
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert all(m.training for m in model.modules())
    with evaluation_mode(model.eval()):
        pass
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("label", [0, 1])
def test_two_rules_add_up_and_differ_only_on_negative_bags(label: int):
    model, x, y = network(), [crops(7)], [torch.tensor([label, label])]
    each = [float(whole_bag_loss(model, x, y, [[rule]]).detach()) for rule in BOTH]
    assert float(whole_bag_loss(model, x, y, [BOTH]).detach()) == pytest.approx(sum(each), rel=1e-5)
    assert (each[0] > each[1]) if label == 0 else (each[0] == pytest.approx(each[1]))


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Bag]:
    """Four patches of 16 instances, every other one positive, and a slide of 160 instances."""
    paths = tiled_pictures(tmp_path_factory.mktemp("whole"), {"s": tissue((512, 320))}, patch_px=64)
    store = SlideStore(paths["s"])
    patch = np.array([(k % 4 * 16, k // 4 * 16) for k in range(16)], np.int32)
    out = [
        Bag(f"p{c}", store, patch + np.array([64 * c, 0], np.int32), (c % 2,), True, Window(64 * c, 0, 64, 64))
        for c in range(4)
    ]
    xy = np.array([(x, y) for y in range(0, 160, 16) for x in range(0, 256, 16)], np.int32)
    return [*out, Bag("s", store, xy, (1,), False, store.grid.frame)]


def whole(bags: list[Bag], rules: list[SelectionRule] = BOTH, count: int = 4) -> WholeBags:
    labels = torch.tensor([b.label for b in bags]).float()
    return WholeBags(bags, labels, [[r] * len(bags) for r in rules], InstanceGrid(16, 32, 1), 0, 0.2, 1.2, count)


def test_positive_and_negative_bags_are_drawn_in_equal_numbers_and_whole(bags: list[Bag]):
    source = whole(bags[:4])
    for step in range(5):
        drawn = source.draw(step)
        assert sorted(bags[b].label[0] for b, _ in drawn) == [0, 0, 1, 1]
        assert all(x.shape == (16, 3, 32, 32) for _, x in drawn)
    assert torch.equal(source.draw(3)[1][1], source.draw(3)[1][1])
    assert not torch.equal(source.draw(3)[1][1], source.draw(4)[1][1])


def test_of_a_large_bag_as_many_instances_as_fit_are_drawn(bags: list[Bag]):
    sizes = {len(x) for step in range(4) for b, x in whole(bags).draw(step) if b == 4}
    assert sizes == {MAX_INSTANCES}


class Scale(nn.Module):
    """A logit that is a weight times the mean of a crop; batches change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x.mean((1, 2, 3))).view(-1, 1)


def trained(training: ClassifierTraining, steps: int = 6) -> list[float]:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 3, 32, 32), np.uint8), torch.tensor([[0.0], [1.0]] * 6)
    return train_classifier(Scale(), x, y, Schedule(steps, 1e-2), training, "toy", ComputeContext(CPU))


def test_without_its_weight_the_constraint_changes_nothing(bags: list[Bag]):
    plain = trained(ClassifierTraining(8, 0.2, 1.2))
    assert trained(ClassifierTraining(8, 0.2, 1.2, whole(bags), (0.0, 1.0))) == pytest.approx(plain)
    assert trained(ClassifierTraining(8, 0.2, 1.2, whole(bags), (1.0, 1.0))) != pytest.approx(plain)


def test_without_the_weight_of_retraining_the_loss_is_that_of_both_selectors_together(bags: list[Bag]):
    got = trained(ClassifierTraining(8, 0.2, 1.2, whole(bags[:4]), (1.0, 0.0)), steps=1)
    wanted = 0.0
    for b, x in whole(bags[:4]).draw(0):
        z = Scale()(normal(x)).detach().ravel().tolist()
        y = bags[b].label[0]
        picks = [max(z), max(z) if y else min(z)]
        wanted += sum(float(np.logaddexp(0, -p if y else p)) for p in picks) / 4
    assert got[0] == pytest.approx(wanted, rel=1e-5)


def normal(x: Tensor) -> Tensor:
    from wsipipe.nn.encoders import normalise

    return normalise(x)


def test_equal_weights_add_the_two_losses(bags: list[Bag]):
    source = whole(bags[:4])
    alone = [trained(ClassifierTraining(8, 0.2, 1.2, source, w), 1)[0] for w in ((1.0, 0.0), (0.0, 1.0))]
    assert trained(ClassifierTraining(8, 0.2, 1.2, source, (1.0, 1.0)), 1)[0] == pytest.approx(sum(alone), rel=1e-5)
