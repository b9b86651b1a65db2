"""Write the map of the package's files into docs/architecture.md: a room a table, a file a line, from their docstrings.

`python scripts/file_map.py` after a file was added, moved or renamed; `tests/test_house.py` holds page and files equal.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "## A line a file\n", "## The life of one picture\n"
GROUND = "The ground, on which every room stands"
ROOMS = [  # from the shell down, as the drawing on the page has them
    "cli",
    "applications",
    "inspection",
    "reports",
    "evaluation",
    "training",
    "generation",
    "checkpoints",
    "model",
    "inputs",
    "encoders",
    "datasets",
    "",
]


def first_line(path: Path) -> str:
    """What a module says of itself."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0].removesuffix(".")


def file_map() -> str:
    """The tables, in Markdown."""
    folders: dict[str, list[Path]] = {}
    for path in sorted(p for top in ("mmgpt", "encoders", "datasets") for p in (ROOT / top).rglob("*.py")):
        folders.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
    tables = []
    for folder in sorted(folders, key=lambda name: (ROOMS.index(_room(name)), name)):
        title = GROUND if folder == "mmgpt" else first_line(ROOT / folder / "__init__.py")
        rows = [f"| `{p.name}` | {first_line(p)} |" for p in folders[folder] if p.name != "__init__.py"]
        tables.append("\n".join([f"| `{folder}/` | {title} |", "| --- | --- |", *rows, ""]))
    return "\n".join(tables)


def _room(folder: str) -> str:
    parts = folder.removeprefix("mmgpt").strip("/").split("/")
    return parts[0]


def page_with_map() -> str:
    """The whole page with the map as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest[rest.index(END) :]
    return f"{before}{BEGIN}\nEach line is the first of the file's own docstring.\n\n{file_map()}\n{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_map(), encoding="utf-8")
