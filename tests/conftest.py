"""Shared fixtures: a seeded generator, one thread, float64 oracles."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("landscape", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("landscape")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
