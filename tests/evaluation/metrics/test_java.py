import os
import stat
from pathlib import Path

import pytest

from mmgpt.evaluation.metrics import ScoredPrediction
from mmgpt.evaluation.metrics.java import java_scores

SOME = [ScoredPrediction("A dog runs.", ("a dog runs", "A dog!")), ScoredPrediction("a cat", ("one cat",))]
FAKE = """#!/bin/sh
# stands for java: answers in the protocol of the two jars
case "$*" in
*meteor-1.5.jar*) while read -r line; do
    case "$line" in
    "SCORE ||| a dog runs ||| a dog ||| a dog runs") echo first ;;
    "SCORE ||| one cat ||| a cat") echo second ;;
    "EVAL ||| first ||| second") printf '0.9\\n0.1\\n0.25\\n' ;;
    *) echo "unexpected: $line" >&2; exit 3 ;;
    esac
done ;;
*spice-1.0.jar*)
    echo '[{"image_id": 0, "scores": {"All": {"f": 0.5}}}, {"image_id": 1, "scores": {"All": {"f": 0.25}}}]' > "$6" ;;
*) echo "no such jar" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(FAKE)
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("meteor-1.5.jar", "spice-1.0.jar", "other.jar"):
        (tmp_path / name).touch()
    return tmp_path


def test_meteor_and_spice_come_from_their_jars(fake_java):
    jars = {"METEOR": fake_java / "meteor-1.5.jar", "SPICE": fake_java / "spice-1.0.jar"}
    assert java_scores(SOME, jars) == ({"METEOR": 0.25, "SPICE": 0.375}, {})


def test_a_jar_that_fails_is_an_error(fake_java):
    with pytest.raises(OSError, match=r"other\.jar stopped with code 1: no such jar"):
        java_scores(SOME, {"METEOR": fake_java / "other.jar"})


def test_what_is_absent_is_told_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "spice-1.0.jar").touch()
    scores, absent = java_scores(SOME, {"METEOR": None, "SPICE": tmp_path / "spice-1.0.jar"})
    assert scores == {"METEOR": None, "SPICE": None}
    assert "--meteor-jar" in absent["METEOR"]
    assert absent["SPICE"] == "there is no java on PATH"
    assert "no file" in java_scores(SOME, {"SPICE": Path("none.jar")})[1]["SPICE"]
