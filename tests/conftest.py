"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(2)
# A first call may load an operator's library: no example is slow because of what is tested.
settings.register_profile("minimrcnn", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("minimrcnn")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, in the environment variable MINIMRCNN_REAL_DATA."""
    folder = os.environ.get("MINIMRCNN_REAL_DATA")
    if not folder:
        pytest.skip("MINIMRCNN_REAL_DATA is not set: no real data to test with")
    if not Path(folder).is_dir():
        pytest.skip(f"MINIMRCNN_REAL_DATA={folder} is no folder")
    return Path(folder)
