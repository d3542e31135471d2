"""Tests marked `gpu` run where the device is there; `LANDSCAPE_DEVICE=cpu` lets them run on the CPU alone."""

import pytest
import torch
from on_device import CUDA


def pytest_collection_modifyitems(items):
    if not CUDA or torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA; LANDSCAPE_DEVICE=cpu runs them on the CPU"))
