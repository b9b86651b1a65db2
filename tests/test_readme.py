import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def bash_blocks() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```bash\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme():
    shown = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--print-test-command"], capture_output=True, text=True, check=True
    )
    assert bash_blocks()[1] == shown.stdout
