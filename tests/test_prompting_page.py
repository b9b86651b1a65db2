import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_page_gets_what_its_blocks_print_and_a_second_time_the_same(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("prompting", ROOT / "scripts" / "prompting.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    script.write_files(tmp_path)
    page = (
        "# A page\n\n```python\nimport mmgpt\nfilm = mmgpt.Video('film.mp4').load()\nprint(film.times)\n```\n\n"
        "```text\nold\n```\n\nThen:\n\n```python\nmmgpt.Image('no.png').load()\n```\n\n"
        "```bash\nls *.png\n```\n\n```yaml\na: 1\n```\n"
    )
    now = script.refreshed(page)
    printed = re.findall(r"^```text\n(.*?)^```", now, flags=re.DOTALL | re.MULTILINE)
    assert printed == [
        "[0.0, 1.0, 2.0, 3.0]\n",
        "MediaError: no.png: no such file; check the image's path\n",
        "other.png\nscene.png\n",
    ]
    assert now.endswith("```yaml\na: 1\n```\n")
    assert script.refreshed(now) == now


def test_every_block_of_the_page_is_followed_by_what_it_prints():
    page = (ROOT / "docs" / "prompting.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^```(?:python|bash)\n.*?^```\n\n```text\n", page, flags=re.DOTALL | re.MULTILINE)) == len(
        re.findall(r"^```(?:python|bash)$", page, flags=re.MULTILINE)
    )
