import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    "errors",
    "arguments config_faults yaml_reader",
    "config configs",
    "locking",
    "files processor",
    "distributed run_log weight_names",
    "encoders datasets",
    "inputs",
    "model",
    "checkpoints",
    "training generation",
    "evaluation serving",
    "reports",
    "trust inspection applications",
    "mmgpt",  # the front door: it hands on names of every floor, and only the shell comes in through it
    "cli",
    "scripts",
]
INSIDE = {  # floors within a room, by the file or folder below it
    "datasets": [
        "cells file_names plain_text template",
        "media",
        "calls parts",
        "sample",
        "fingerprint mixture remote source",
        "readers worlds",
        "dedup shard_writer",
    ],
    "encoders": [
        "feature_grids one_thread augment audio_config mel image_processing conformer_config",
        "conformer timm_vit vit whisper",
        "pretrained",
        "registry",
    ],
}
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
FRONT_DOOR = {"mmgpt", "mmgpt.__main__"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] in {"mmgpt", "scripts"} else ("mmgpt", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "mmgpt" and len(parts) > 1 else parts[0]


PACKAGE = {module_name(path): path for path in python_files("mmgpt", "encoders", "datasets", "configs")}
SCRIPTS = {module_name(path): path for path in python_files("scripts")}


def imported_modules(module: str, path: Path) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                enters_a_room = source == "mmgpt" and alias.name in HEIGHT
                yield inner if inner in PACKAGE or enters_a_room else source


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("module", [name for name in [*PACKAGE, *SCRIPTS] if name not in FRONT_DOOR])
def test_imports_only_go_down_or_stay_in_the_room(module):
    path = {**PACKAGE, **SCRIPTS}[module]
    room = room_of(module)
    assert room in HEIGHT, f"{path.relative_to(ROOT)} stands in no room of the house; give {room} a floor"
    for used in imported_modules(module, path):
        if used.split(".")[0] == "mmgpt":
            below = room_of(used)
            assert below in HEIGHT, f"{module} imports {used}, which stands in no room of the house"
            assert below == room or HEIGHT[below] < HEIGHT[room], f"{module} ({room}) may not import {used}"


@pytest.mark.parametrize("room", INSIDE)
def test_imports_only_go_down_within_a_room_too(room):
    height = {part: floor for floor, parts in enumerate(INSIDE[room]) for part in parts.split()}
    for module, path in PACKAGE.items():
        if room_of(module) == room and module.count(".") > 1:
            here = module.split(".")[2]
            for used in imported_modules(module, path):
                if used.startswith(f"mmgpt.{room}."):
                    below = used.split(".")[2]
                    assert below == here or height[below] <= height[here], f"{module} may not import {used}"


def test_every_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name for name, path in PACKAGE.items() if path.name == "__init__.py"}
    folders = {module_name(path.parent / "__init__.py") for path in PACKAGE.values()}
    assert packages == folders, "a folder of modules lacks its __init__.py"
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_no_file_is_too_long_to_read_in_one_go():
    files = python_files("mmgpt", "encoders", "datasets", "configs", "scripts", "tests")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long_to_read_in_one_go():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in python_files("mmgpt", "encoders", "datasets", "configs", "scripts", "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_the_map_has_a_line_for_every_file(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    file_map = importlib.import_module("file_map")
    assert file_map.PAGE.read_text(encoding="utf-8") == file_map.page_with_map(), "run python scripts/file_map.py"


def rows_of_where_is() -> list[list[str]]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## Where is") : page.index("## A line a file")]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize(("what", "files", "names"), rows_of_where_is())
def test_what_the_page_points_at_is_there(what, files, names):
    paths = [
        ROOT / file if (ROOT / file).exists() else ROOT / "mmgpt" / file for file in re.findall(r"`([^`]+)`", files)
    ]
    assert [path for path in paths if not path.exists()] == [], what
    source = " ".join(path.read_text() for path in paths if path.is_file())
    wanted = [part for quoted in re.findall(r"`([^`]+)`", names) for part in quoted.split(".")]
    assert [name for name in wanted if not re.search(rf"\b{name}\b", source)] == [], f"{what}: not in {files}"


def test_the_map_of_tests_points_at_files():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("| what is proven") : page.index("## A change")]
    for quoted in re.findall(r"`([\w/{},*]+(?:\.py|/|\*))`", table):
        before, braces, rest = quoted.partition("{")
        inside, _, after = rest.partition("}")
        for name in [before + one + after for one in inside.split(",")] if braces else [quoted]:
            assert list((ROOT / "tests").glob(name)), f"{quoted}: no tests/{name}"


def import_names_of_extras() -> set[str]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", requirement)[0] for group in groups.values() for requirement in group}
    names = {name.replace("-", "_") for name in names}
    return names - {"fsspec", "mmgpt", "open_clip_torch"} | {"open_clip"}  # torch itself needs fsspec


IMPORT_WITHOUT_EXTRAS = """
import importlib, sys
extras, modules = (argument.split(",") for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(extras))  # with None, an import fails and find_spec finds nothing
for module in modules:
    importlib.import_module(module)
"""


def test_every_module_imports_with_only_the_core_dependencies(tmp_path):
    modules = [name for name in PACKAGE if name != "mmgpt.__main__"]
    extras = sorted(import_names_of_extras())
    done = run_python("-c", IMPORT_WITHOUT_EXTRAS, ",".join(extras), ",".join(modules), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_python_dash_m_mmgpt_runs_from_the_root_of_the_repository():
    done = run_python("-m", "mmgpt", "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize("folder", ["datasets", "encoders"])
def test_a_folder_imported_from_the_root_names_its_right_import(folder):
    done = run_python("-c", f"import {folder}", cwd=ROOT)
    assert done.returncode == 1
    assert f"ImportError: this folder is imported as `mmgpt.{folder}`" in done.stderr
