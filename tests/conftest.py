import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("mmgpt", deadline=None)  # the first call of a kernel takes far longer than the rest
settings.load_profile("mmgpt")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_packs() -> Path:
    packs = Path(os.environ.get("MMGPT_DATA") or ROOT.parent / "shared" / "data")
    if not packs.is_dir():
        pytest.skip(f"no data packs at {packs}; name their folder in MMGPT_DATA")
    return packs
