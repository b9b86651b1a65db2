"""`python -m mmgpt` and `torchrun -m mmgpt`, safe to run from the root of the repository.

`-m` puts the working directory on `sys.path`; from the repository's root, our `datasets/` would then shadow
the `datasets` of Hugging Face for every library that looks for it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():  # installed, the parent is site-packages, which must stay
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != root]

    from mmgpt.cli.main import main

    main()
