import pytest

from mmgpt.datasets.readers import tars


@pytest.fixture
def _own_ranges(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tars.ranges_of.cache_clear()
