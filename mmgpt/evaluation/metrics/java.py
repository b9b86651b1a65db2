"""METEOR and SPICE of captions through their official jars, where Java and the jar are there.

Both rest on programs and word lists that are not ours to rewrite; a figure that cannot be had is None, with the reason.
Sources: meteor-1.5.jar (Denkowski and Lavie 2014), spice-1.0.jar (Anderson et al. 2016, arXiv:1607.08822), called as
pycocoevalcap calls them: METEOR on the tokens of the caption evaluation, SPICE on the captions as they stand.
"""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mmgpt.evaluation.metrics.captions import tokens
from mmgpt.evaluation.metrics.metric import ScoredPrediction

JARS = {"METEOR": "meteor-1.5.jar", "SPICE": "spice-1.0.jar"}


def java_scores(
    answered: Sequence[ScoredPrediction], jars: dict[str, Path | None]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """METEOR and SPICE of captions, None where absent; and why those are absent.

    Args:
        answered: predictions with their references.
        jars: the path of each metric's jar, None if not given.
    Raises:
        OSError: if a jar is there but fails.
    """
    scores, absent = dict[str, float | None](), dict[str, str]()
    for name, run in RUNS.items():
        jar = jars.get(name)
        scores[name] = None
        if jar is None:
            absent[name] = f"needs Java and the path of {JARS[name]}, given by --{name.lower()}-jar"
        elif not jar.is_file():
            absent[name] = f"there is no file {jar}"
        elif shutil.which("java") is None:
            absent[name] = "there is no java on PATH"
        else:
            scores[name] = run(jar.resolve(), answered)
    return scores, absent


def _meteor(jar: Path, answered: Sequence[ScoredPrediction]) -> float:
    lines = []
    for one in answered:
        said, *right = (" ".join(tokens(text)).replace("|||", "") for text in (one.prediction, *one.references))
        lines.append(" ||| ".join(["SCORE", *right, said]))
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    sample_stats = _java(["-Xmx2G", "-jar", str(jar), *options], lines, jar)[: len(lines)]
    answer = _java(["-Xmx2G", "-jar", str(jar), *options], [" ||| ".join(["EVAL", *sample_stats])], jar)
    return float(answer[len(lines)])  # after the score of each caption


def _spice(jar: Path, answered: Sequence[ScoredPrediction]) -> float:
    captions = [
        {"image_id": at, "test": one.prediction, "refs": list(one.references)} for at, one in enumerate(answered)
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(captions), encoding="utf-8")
        _java(["-Xmx8G", "-jar", str(jar), str(asked), "-out", str(told), "-subset", "-silent"], [], jar)
        scores = [float(one["scores"]["All"]["f"]) for one in json.loads(told.read_text(encoding="utf-8"))]
    return math.fsum(scores) / len(scores)


def _java(arguments: list[str], lines: Sequence[str], jar: Path) -> list[str]:
    given = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        ["java", *arguments], input=given, capture_output=True, text=True, encoding="utf-8", cwd=jar.parent
    )
    if done.returncode:
        raise OSError(f"{jar.name} stopped with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.splitlines()


RUNS: dict[str, Callable[[Path, Sequence[ScoredPrediction]], float]] = {"METEOR": _meteor, "SPICE": _spice}
