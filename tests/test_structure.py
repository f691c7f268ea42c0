"""The structure of the project: commands in src/, concerns in src/rsna/, imports in one direction only."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
# the order of imports: a concern imports from itself and from those before it
CONCERNS = [
    "core",
    "execution",
    "data",
    "evaluation",
    "models",
    "inference",
    "training",
    "reporting",
    "kaggle",
    "synthetic",
]
COMMANDS = {path.stem: ast.parse(path.read_text()) for path in sorted(SRC.glob("*.py")) if path.stem != "__init__"}
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((SRC / "rsna").rglob("*.py"))
    if path.name != "__init__.py"
}
MOST_MODULES, LONGEST_COMMAND, LONGEST_MAIN = 12, 40, 15
RETIRED = re.compile(
    r"\b(start_at|start_at_mean|looked_at|full_map|REACH|SPREAD|stamps?|only_one|made_from|makers?|computed_in|"
    r"oof_plain|valid_plain|plain_best_mAP|fusion_iou|cohorts?|head=(places|flat)|"
    r"honest(ly)?|mend(ed|s|ing)?|speaks? of|say (a|an|another|more|fewer)|(fits? |so )ill|earlier session)\b"
)


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
    """The position in the order of imports; startup, which imports the settings for the commands, is last."""
    return len(CONCERNS) if module == "rsna.startup" else CONCERNS.index(module.split(".")[1])


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
    for folder in ("tests", "bench"):
        trees |= {str(path): ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py")}
    for name, tree in trees.items():
        used = set(imported(tree)) & COMMANDS.keys()
        assert not used, f"{name} imports the command {used}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_summary(name):
    tree = COMMANDS[name]
    source = (SRC / f"{name}.py").read_text()
    assert source.count("\n") <= LONGEST_COMMAND, "the work is done by functions of a concern"
    (main,) = [node for node in tree.body if getattr(node, "name", "") == "main"]
    assert main.end_lineno - main.lineno < LONGEST_MAIN
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    run(main)"
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_checks_the_packages_before_it_imports_one(name):
    statements = [node for node in COMMANDS[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in statements]
    others = [module for module in modules if module.split(".")[0] not in sys.stdlib_module_names]
    assert others[0] == "rsna.startup"
    assert {module.split(".")[0] for module in others} == {"rsna"}


def test_startup_needs_nothing_but_python():
    top = [node for node in MODULES["rsna.startup"].body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {str(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in top}
    assert names <= set(sys.stdlib_module_names)


def test_no_command_hides_a_module_of_python():
    assert [name for name in COMMANDS if name in sys.stdlib_module_names] == []


def test_no_module_has_a_vague_name():
    vague = {"utils", "util", "helpers", "misc", "common", "tools"}
    assert [name for name in MODULES if name.rsplit(".", 1)[1] in vague] == []


def test_public_functions_have_types():
    for name, tree in (MODULES | COMMANDS).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{name}.{node.name}"


def texts():
    """Path -> text of every source and documentation file."""
    paths = [path for pattern in ("src/**/*.py", "src/**/*.j2", "docs/*.md", "*.md") for path in ROOT.glob(pattern)]
    return {path.relative_to(ROOT): path.read_text() for path in [*paths, ROOT / "run.sh"]}


def test_retired_words_have_not_come_back():
    """Words that readers would have to learn before they could read the code."""
    # the changelog says what was renamed, and the settings answer an old name with the new one
    exempt = {Path("CHANGELOG.md"), Path("src/rsna/core/command_line.py")}
    found = [
        f"{path}:{number} {match[0]}"
        for path, text in texts().items()
        if path not in exempt
        for number, line in enumerate(text.split("\n"), 1)
        for match in RETIRED.finditer(line)
    ]
    assert found == []
