"""The documents are true: links, files, names, commands and options exist, and the worked examples run."""

import ast
import dataclasses
import importlib.util
import re
import shlex

import click
import numpy as np
import pytest
from helpers import ROOT, make_mvtec

import backbones
import main
from datasets.base import Layout, Sample
from glass import GLASS
from inference.judge import Result

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
DOCUMENTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS)

FOLDERS = sorted({path.parent.name for pattern in ("*/*.py", "*/*.sh") for path in ROOT.glob(pattern)} | {"docs"})
MODULES = sorted(p.stem for p in ROOT.glob("*.py"))
OF_AN_EXAMPLE = {"datasets/flat.py"}  # the reader creates it
OF_OTHER_PROGRAMS = {"--check", "--dry-run", "--data-binary"}  # ruff, pip, curl
FENCED = re.compile(r"^```.*?\n(.*?)^```", re.S | re.M)
CLASSES = {"GLASS": GLASS, "Layout": Layout, "Sample": Sample}  # named without their module
LONGEST_README = 200  # lines


def commands():
    """Every command of main.py, by name."""
    context = click.Context(main.main)
    return {name: main.main.get_command(context, name) for name in main.main.list_commands(context)}


def options_of(command):
    """The options of a command, by spelling."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def options_in_source(pattern):
    """Every option that scripts mention."""
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob(pattern)]
    assert sources, pattern
    return {_plain(name) for source in sources for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", source)}


def _plain(name):
    """--meta-epochs and --meta_epochs are the same option."""
    return "--" + name[2:].replace("-", "_") if name.startswith("--") else name


def without_code(text):
    return FENCED.sub("", text)


def inline_code(text):
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(text))]


def code_lines(text):
    """Command lines in fenced blocks and inline code, continued lines joined."""
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    return [line.strip() for line in blocks.splitlines() if line.strip()] + inline_code(text)


def headings(text):
    """Anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def example(heading):
    """The Python block of a section of CONTRIBUTING.md."""
    section = DOCUMENTS["CONTRIBUTING.md"].split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


def exists(name):
    """Whether a file is there; <dataset> in its name stands for anything."""
    return any(ROOT.glob(re.sub(r"<\w+>", "*", name))) or name in OF_AN_EXAMPLE


# ------------------------------------------------------------------------------------ links, files, names


@EVERY_DOCUMENT
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(DOCUMENTS[document])):
        file, _, anchor = target.partition("#")
        path = ((ROOT / document).parent / file).resolve() if file else ROOT / document
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path.read_text(encoding="utf-8")), target


def test_every_document_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([\w./-]+\.md)", DOCUMENTS["README.md"]))
    assert linked >= DOCUMENTS.keys() - {"README.md"}


@EVERY_DOCUMENT
def test_files_that_are_named_exist(document):
    text = DOCUMENTS[document]
    folders = "|".join(FOLDERS)
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.<>-]+\.(?:py|sh|md|txt|csv|xlsx|jpg))\b", text))
    named |= {code for code in inline_code(text) if re.fullmatch(r"[a-z]\w*\.py", code)}
    missing = {name for name in named if not exists(name)}
    assert not missing


@EVERY_DOCUMENT
def test_names_from_the_code_exist(document):
    for code in inline_code(DOCUMENTS[document]):
        if not re.fullmatch(r"\w+(\.\w+)+", code) or (ROOT / code).exists():
            continue
        first, *rest = code.split(".")
        if first in CLASSES:
            assert hasattr(CLASSES[first], *rest), code
        elif first in {*FOLDERS, *MODULES} and first not in ("docs", "onnx", "shell"):
            assert _found(first, rest), code


def _found(first, rest):
    """Whether a module, or something in one, has this dotted name."""
    place = importlib.import_module(first)
    for i, part in enumerate(rest):
        name = ".".join((first, *rest[: i + 1]))
        if hasattr(place, "__path__") and importlib.util.find_spec(name):
            importlib.import_module(name)  # makes it an attribute of its package
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


def test_every_part_of_the_project_is_described():
    text = DOCUMENTS["CONTRIBUTING.md"]
    parts = {f"{name}/" for name in FOLDERS} | {f"{name}.py" for name in MODULES}
    missing = {part for part in parts if f"`{part}`" not in text}
    assert not missing


def test_error_messages_that_are_explained_exist():
    sources = [path.read_text(encoding="utf-8") for name in (".", *FOLDERS) for path in (ROOT / name).glob("*.py")]
    texts = [node.value for source in sources for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
    messages = re.findall(r'\*\*"(.+?)"\*\*', DOCUMENTS["docs/questions.md"])
    assert messages
    missing = [message for message in messages if not any(message in text for text in texts)]
    assert not missing


# -------------------------------------------------------------------------------------------- commands


def command_lines():
    return [
        pytest.param(line[line.index("main.py") :], id=f"{document}: {line[:60]}")
        for document, text in DOCUMENTS.items()
        for line in code_lines(text)
        if "python main.py" in line
    ]


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_their_options_exist(line):
    words = words_of(line)
    known = commands()
    alone = [word for word in words if word in known.keys() - {"net", "dataset"}][:1]
    # options before the name of a command that stands alone may be its own
    current = options_of(main.main) | (options_of(known[alone[0]]) if alone else {})
    in_chain, option = not alone, None
    for word in words:
        if option is not None:
            check_value(option, word)
            option = None
        elif word.startswith("-"):
            name, _, value = word.partition("=")
            assert _plain(name) in {*current, "--help"}, f"{name} is not an option here: {line}"
            found = current.get(_plain(name))
            option = found if found is not None and not found.is_flag and not value else None
        elif in_chain or word in alone:
            if word in known:
                current = options_of(known[word])
                in_chain = word == "net"
            elif word != "…":
                assert word.isupper(), f"{word} is not a command: {line}"


def words_of(line):
    """The words after main.py, without comments and placeholders such as [OPTIONS]."""
    line = re.sub(r"\[(?!-)[^\]]*\]", " ", line).replace("[", " ").replace("]", " ")
    return shlex.split(line, comments=True)[1:]


def check_value(option, value):
    """An example's value is one that the option takes."""
    if not value.isupper() and not isinstance(option.type, click.Path):
        option.type.convert(value, option, click.Context(main.main))


def test_scripts_that_are_called_exist_and_know_their_options():
    options = {pattern: options_in_source(pattern) for pattern in ("onnx/*.py", "benchmarks/*.py", "tools/*.py")}
    options["shell/*.sh"] = {*options_of(main.main)} | {"-k"}  # scripts hand them to main.py, test.sh to pytest
    count = 0
    for text in DOCUMENTS.values():
        for line in code_lines(text):
            call = re.search(r"(?:python|bash) (?:-m )?((onnx|benchmarks|tools|shell)[/.][\w./-]+)(.*)", line)
            if call is None or "ruff" in line:
                continue
            name, folder, rest = call.groups()
            name = name if "/" in name else name.replace(".", "/") + ".py"
            assert exists(name), line
            kind = f"{folder}/*.{'sh' if folder == 'shell' else 'py'}"
            given = {_plain(word) for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest.split("#")[0])}
            assert given <= options[kind], line
            count += 1
    assert count > 20


@EVERY_DOCUMENT
def test_options_that_are_named_exist(document):
    known = {_plain(name) for command in (main.main, *commands().values()) for name in options_of(command)}
    for pattern in ("onnx/*.py", "benchmarks/*.py", "tools/*.py"):
        known |= options_in_source(pattern)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", DOCUMENTS[document]))
    unknown = {name for name in named if _plain(name) not in known} - OF_OTHER_PROGRAMS - {"--help"}
    assert not unknown


def test_every_command_is_in_the_readme():
    missing = [
        name for name in commands() if not re.search(rf"python main\.py [^`|]*\b{name}\b", DOCUMENTS["README.md"])
    ]
    assert not missing


# ---------------------------------------------------------------------------------- numbers, requirements


def test_readme_is_short():
    assert DOCUMENTS["README.md"].count("\n") <= LONGEST_README


def test_every_measured_result_has_the_command_that_measured_it():
    sections = DOCUMENTS["docs/figures.md"].split("\n## ")[1:]
    assert len(sections) > 5
    for section in sections:
        calls = re.findall(r"(?:bash|python) ([\w/-]+\.(?:sh|py))", "\n".join(FENCED.findall(section)))
        assert calls, section.splitlines()[0]
        assert all((ROOT / script).is_file() for script in calls)


def test_development_requirements_are_those_of_the_project_and_its_extras():
    declared = re.findall(r'"(requirements[\w./-]*\.txt)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = re.findall(r"^-r (\S+)$", (ROOT / "requirements-dev.txt").read_text(encoding="utf-8"), re.M)
    assert set(declared) == set(included)
    for name in declared:  # setuptools reads plain requirements only
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#")), name


# --------------------------------------------------------------------------------------- worked examples


def test_example_of_the_library_uses_what_is_there():
    code = re.search(r"```python\n(.*?)```", DOCUMENTS["docs/usage.md"], re.S)[1]
    used = re.findall(r"\bresult\.(\w+)", code)
    assert set(used) <= {field.name for field in dataclasses.fields(Result)}
    imports = [line for line in code.splitlines() if line.startswith("from ")]
    exec("\n".join(imports), scope := {})
    assert callable(scope["load_checkpoint"])
    compile(code, "usage.md", "exec")


def test_example_of_a_backbone_works(monkeypatch):
    name, of_torchvision = re.search(r'"(\w+)": "(\w+)"', example("Adding a backbone")).groups()
    assert backbones.TORCHVISION["resnet18"] == "resnet18"
    monkeypatch.setitem(backbones.TORCHVISION, name, of_torchvision)
    network = backbones.load(name, "random")
    (line,) = [line for line in code_lines(DOCUMENTS["CONTRIBUTING.md"]) if f"-b {name}" in line]
    layers = re.findall(r"-le (\S+)", line)
    assert layers
    for layer in layers:
        network.get_submodule(layer)


def test_example_of_a_data_set_works(tmp_path):
    data, _ = make_mvtec(tmp_path, classes=("disc",))
    (data / "disc/train/good").rename(data / "good_disc")
    (data / "disc/test").rename(data / "rest")
    (data / "rest" / next(p.name for p in (data / "rest").iterdir() if p.name != "good")).rename(data / "bad_disc")
    scope = {}
    exec("from datasets.base import Layout, Sample\nfrom datasets.listing import list_images\n", scope)
    exec(example("Adding a data set"), scope)
    layout = scope["FlatLayout"](data)
    assert isinstance(layout, Layout)
    assert layout.classes() == ["disc"]
    assert len(layout.train("disc")) == 6
    assert {sample.kind for sample in layout.test("disc")} == {"bad"}


def test_example_of_a_metric_works():
    scope = {"np": np, "NAN": float("nan"), "ArrayLike": object}
    exec(example("Adding a metric"), scope)
    measure = scope["balanced_accuracy"]
    assert measure([0.1, 0.9, 0.8, 0.2], [0, 0, 1, 1], 0.5) == 0.5
    assert measure([0.1, 0.2, 0.2, 0.8, 0.9], [0, 0, 0, 1, 1], 0.5) == 1
    assert np.isnan(measure([0.1], [0], 0.5))


def test_places_that_the_examples_change_exist():
    import datasets
    from reporting import page
    from training.evaluation import METRICS, judge

    assert datasets._PLACES["FolderLayout"] == "folder"
    assert datasets._LAYOUTS["folder"] == "FolderLayout"
    assert callable(judge)
    assert {key for key, _ in page.SHOWN} >= set(METRICS)
