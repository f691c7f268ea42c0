"""The rules of the house: verbs import nouns, nouns never verbs, no cycles, no name that hides a package."""

import ast
import importlib.util
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "src").glob("*.py"))}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are bare"
            yield str(node.module).split(".")[0]


def is_verb(tree):
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


GRAPH = {name: {other for other in imports(tree) if other in SOURCES} for name, tree in SOURCES.items()}
VERBS = {name for name, tree in SOURCES.items() if is_verb(tree)}


def test_there_are_both_kinds():
    assert {
        "make_folds",
        "cache_images",
        "train",
        "predict",
        "ensemble",
        "evaluate",
        "make_submission",
        "make_demo",
    } <= VERBS
    assert {"config", "boxes", "metric", "images", "files", "model"} <= set(SOURCES) - VERBS


def test_nobody_imports_a_verb():
    assert {name: used & VERBS for name, used in GRAPH.items() if used & VERBS} == {}


def test_no_cycles():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(SOURCES)


def test_no_name_hides_a_package_or_a_folder():
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT / "src"]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for name in SOURCES:
        assert name not in folders
        assert name not in sys.stdlib_module_names
        assert (
            importlib.util.find_spec(name) is None or importlib.machinery.PathFinder.find_spec(name, elsewhere) is None
        )


def test_verbs_end_alike():
    for name in VERBS:
        assert ast.unparse(SOURCES[name].body[-1]) == "if __name__ == '__main__':\n    main(load_config())", name
        (main,) = [node for node in SOURCES[name].body if getattr(node, "name", "") == "main"]
        assert main.end_lineno - main.lineno <= 16, f"{name}: main reads as the stage's summary"


def test_public_functions_have_types():
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{name}.{node.name}"
