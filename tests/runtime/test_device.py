"""Devices and precision."""

from __future__ import annotations

import pytest

from wsipipe.errors import ConfigError
from wsipipe.runtime import device as devices


def test_device_auto_and_cpu() -> None:
    assert devices.device("cpu").type == "cpu"
    assert devices.device("auto").type in ("cpu", "cuda")


def test_an_unknown_device_says_what_is_expected() -> None:
    with pytest.raises(ConfigError, match="device 'gpu': expected auto, cpu or cuda:N"):
        devices.device("gpu")


def test_a_missing_gpu_says_how_many_there_are() -> None:
    with pytest.raises(ConfigError, match=r"device cuda:99: \d+ CUDA devices found; use --device auto"):
        devices.device("cuda:99")


def test_a_cpu_computes_in_float32_whatever_it_could_do() -> None:
    """In bfloat16 the weights' gradient of this convolution is memory that nobody wrote, on CPUs that compute in it."""
    import torch

    x, w = torch.ones(8, 64, 1, 1), torch.ones(64, 64, 3, 3, requires_grad=True)
    with devices.autocast(devices.device("cpu")):
        y = torch.nn.functional.conv2d(x, w, stride=2, padding=1)
    assert y.dtype == torch.float32
    y.sum().backward()
    expected = torch.zeros(64, 64, 3, 3)
    expected[:, :, 1, 1] = 8
    torch.testing.assert_close(w.grad, expected)
