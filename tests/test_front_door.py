import subprocess
import sys

import pytest

import mmgpt

HEAVY = ("torch", "numpy", "pydantic", "PIL", "tokenizers")


def test_import_mmgpt_is_instant():
    code = f"import sys, mmgpt; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", mmgpt.__all__)
def test_every_public_name_resolves(name):
    found = getattr(mmgpt, name)
    assert callable(found)
    assert found.__module__.startswith("mmgpt.")


def test_the_public_names_are_the_listed_ones():
    assert dir(mmgpt) == sorted(mmgpt.__all__)
    namespace: dict[str, object] = {}
    exec("from mmgpt import *", namespace)
    assert set(mmgpt.__all__) <= set(namespace)
    assert {"load", "train", "evaluate", "FewShot", "Image", "UserError"} <= set(mmgpt.__all__)


def test_train_is_the_whole_recipe_and_no_submodule():
    from mmgpt.applications.pipeline import run_recipe

    assert mmgpt.train is run_recipe


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mmgpt, "lod")
    with pytest.raises(AttributeError, match="module 'mmgpt' has no attribute 'lod'"):
        _ = mmgpt.lod
    with pytest.raises(ImportError):
        exec("from mmgpt import lod")
