"""The structure of the project: commands in src/, concerns in src/rsna/, imports in one direction."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
# the order of imports: a concern imports from itself and from those before it
CONCERNS = ["core", "data", "evaluation", "models", "inference", "training", "reporting", "kaggle", "synthetic"]
COMMANDS = {path.stem: ast.parse(path.read_text()) for path in sorted(SRC.glob("*.py")) if path.stem != "__init__"}
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((SRC / "rsna").rglob("*.py"))
    if path.name != "__init__.py"
}
MOST_MODULES = 12


def imported(tree):
    """The dotted names that a module imports, anywhere in it; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


GRAPH = {name: {other for other in imported(tree) if other in MODULES} for name, tree in MODULES.items()}


def concern(module):
    return CONCERNS.index(module.split(".")[1])


def test_every_folder_is_a_known_concern_and_is_not_crowded():
    folders = {path.name: path for path in (SRC / "rsna").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(folders) == sorted(CONCERNS)
    for name, path in folders.items():
        modules = [file for file in path.glob("*.py") if file.name != "__init__.py"]
        assert 0 < len(modules) <= MOST_MODULES, f"{name}: {len(modules)} modules"


@pytest.mark.parametrize("module", MODULES)
def test_concerns_import_only_from_those_before_them(module):
    assert [other for other in GRAPH[module] if concern(other) > concern(module)] == []


def test_there_is_no_import_cycle():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(MODULES)


def test_nobody_imports_a_command():
    trees = MODULES | COMMANDS
    trees |= {
        str(path): ast.parse(path.read_text())
        for folder in ("tests", "bench")
        for path in (ROOT / folder).rglob("*.py")
    }
    for name, tree in trees.items():
        used = set(imported(tree)) & COMMANDS.keys()
        assert not used, f"{name} imports the command {used}"


def test_no_command_hides_a_module_of_python():
    assert [name for name in COMMANDS if name in sys.stdlib_module_names] == []


def test_public_functions_have_types():
    for name, tree in (MODULES | COMMANDS).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{name}.{node.name}"
