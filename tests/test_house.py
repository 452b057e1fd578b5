"""The house is as CONTRIBUTING describes it: imports go one way, the root holds the paper's names, nothing is too long.

Imports inside functions count as well; imports for type annotations alone (`if TYPE_CHECKING`) do not.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

ROOT_FILES = {
    "main.py", "glass.py", "model.py", "backbones.py", "common.py", "loss.py", "metrics.py", "perlin.py", "utils.py",
}  # fmt: skip
WINGS = (
    "commands", "datasets", "generation", "inference", "networks", "reporting", "serving", "synthesis", "training",
)  # fmt: skip
# From the front door down: a module may import what is in its own row or in one below. The most specific name counts.
WAY_DOWN = (
    ("main",),
    ("commands",),
    ("serving",),
    ("training.run",),
    ("training.class_run",),
    ("training.earlier", "training.reading", "training.preparing", "training.job", "reporting.preview"),
    ("glass",),
    ("training",),  # trainer, state, testing, calibration, saving: driven with a model, not built on its class
    ("reporting",),
    ("training.evaluation", "training.device_metrics", "training.feature_cache", "training.record"),
    ("training.distribution",),
    ("inference.inspector",),
    ("inference",),
    ("reporting.cells", "reporting.drawing", "reporting.formats"),
    ("generation.mad_sys",),
    ("synthesis.gas", "synthesis.slope", "synthesis.ascent"),
    ("datasets",),
    ("synthesis", "generation"),
    ("backbones", "common"),
    ("networks", "model"),
    ("metrics",),
    ("perlin", "loss", "utils"),
)
NEVER = (  # whatever the order says
    ("inference", "training"),
    ("datasets", "training"),
    ("datasets", "inference"),
    ("datasets", "reporting"),
    ("serving", "commands"),
    ("synthesis", "inference"),
    ("generation", "inference"),
)
SCRIPTS = ("onnx", "tools", "benchmarks")
LONGEST_FILE, LONGEST_FUNCTION, MOST_METHODS = 400, 50, 15
# what is longer, with the reason
LONGER = {
    "synthesis/gas.py gas": "half of it is the signature and the docstring of the paper's algorithm 1",
}


@cache
def source_files():
    """Every Python file of the root and the wings, by the name of its module."""
    files = [*ROOT.glob("*.py"), *(path for wing in WINGS for path in (ROOT / wing).rglob("*.py"))]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def names_imported(node):
    """Names that an import statement may refer to; of `from a import b` both a.b and a."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return set()


def imported(nodes):
    names = set()
    for node in nodes:
        if not is_for_types(node):
            names |= names_imported(node) | imported(ast.iter_child_nodes(node))
    return names


@cache
def graph():
    """The modules that each module imports, anywhere in its file."""
    files, arrows = source_files(), {}
    for name, path in files.items():
        targets = imported(ast.parse(path.read_text(encoding="utf-8")).body) & files.keys() - {name}
        # a package that is named only on the way to one of its modules is not what is imported
        arrows[name] = {t for t in targets if not (t in WINGS and any(o.startswith(f"{t}.") for o in targets))}
    return arrows


def row(module):
    names = [name for row in WAY_DOWN for name in row]
    longest = max((name for name in names if module == name or module.startswith(f"{name}.")), key=len)
    return next(i for i, row in enumerate(WAY_DOWN) if longest in row)


def test_the_root_holds_the_names_of_the_paper_and_nothing_else():
    assert {path.name for path in ROOT.glob("*.py")} == ROOT_FILES


def test_every_file_is_in_a_wing_that_is_known():
    folders = {path.parts[0] for path in (p.relative_to(ROOT) for p in ROOT.glob("*/__init__.py"))}
    assert folders == {*WINGS, "tools"}


def test_no_circle():
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


def test_imports_go_one_way():
    wrong = [f"{a} -> {b}" for a, targets in graph().items() for b in targets if row(a) > row(b)]
    assert not wrong


@pytest.mark.parametrize(("above", "below"), NEVER)
def test_wings_that_do_not_know_each_other(above, below):
    wrong = [
        f"{a} -> {b}" for a, targets in graph().items() for b in targets
        if a.split(".")[0] == above and b.split(".")[0] == below
    ]  # fmt: skip
    assert not wrong


def test_the_checks_of_imports_can_fail():
    """A function's import counts, one for types does not, and each kind of wrong arrow is found."""
    body = ast.parse("if TYPE_CHECKING:\n    import a\ndef f():\n    from b import c\nimport d").body
    assert imported(body) == {"b", "b.c", "d"}
    assert row("datasets.files") > row("training.run") < row("glass") < row("inference.scorer") < row("utils")
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def measured_files():
    """The files of the wings, and the scripts, which nothing imports."""
    return [*source_files().values(), *(path for folder in SCRIPTS for path in (ROOT / folder).glob("*.py"))]


def definitions():
    """(where, node) of each function and class."""
    for path in measured_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield f"{path.relative_to(ROOT).as_posix()} {node.name}", node


def test_files_functions_and_classes_fit():
    long = [
        path.relative_to(ROOT).as_posix() for path in measured_files()
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE
    ]  # fmt: skip
    for where, node in definitions():
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
            long.append(where)
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            if len(methods) > MOST_METHODS:
                long.append(where)
    assert set(long) == set(LONGER)


def test_importing_a_command_line_is_light():
    """Nothing that `--help` needs imports PyTorch."""
    code = "import sys, main; assert not {'torch', 'pandas', 'scipy', 'cv2'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
