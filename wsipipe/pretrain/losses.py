"""Losses of self-supervision between the embeddings of two views, each as its paper has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def vicreg_loss(a: Tensor, b: Tensor) -> Tensor:
    """25 s(a, b) + 25 (v(a) + v(b)) + c(a) + c(b) of two embeddings float [N, D].

    Bardes, Ponce, LeCun, ICLR 2022, equations 1, 3, 5 and 6. s: mean squared distance, over D too, as the authors' code
    has it (equation 5 does not divide by D). v: hinge that keeps each dimension's deviation at 1. c: squared
    off-diagonal covariance over D, which decorrelates dimensions.
    """
    n, d = a.shape
    invariance = F.mse_loss(a, b)
    variance = a.new_zeros(())
    covariance = a.new_zeros(())
    for z in (a - a.mean(0), b - b.mean(0)):
        variance = variance + F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
        c = z.T @ z / (n - 1)
        covariance = covariance + (c.square().sum() - c.diagonal().square().sum()) / d
    return 25 * invariance + 25 * variance + covariance


def simclr_loss(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent of two embeddings float [N, D]: Chen et al., ICML 2020, equation 1, averaged over all 2 N views.

    l(i, j) = -log exp(sim(z_i, z_j) / t) / sum over k != i of exp(sim(z_i, z_k) / t), sim the cosine.
    """
    z = F.normalize(torch.cat([a, b]), dim=1)
    n = len(a)
    own = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(q, z'): Grill et al., NeurIPS 2020, equation 2, the mean over float [N, D]; z' has no gradient."""
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1)).mean()


def dino_loss(student: Tensor, teacher: Tensor, centre: Tensor, warm: float = 0.1, cool: float = 0.04) -> Tensor:
    """H(P_t, P_s): Caron et al., ICCV 2021, equations 1 to 3, the mean over logits float [N, K] of two views.

    P_s = softmax(student / warm), P_t = softmax((teacher - centre) / cool); the teacher has no gradient.
    """
    p = ((teacher - centre) / cool).softmax(1).detach()
    return -(p * (student / warm).log_softmax(1)).sum(1).mean()
