"""The package's imports point down its layers, never back up, and run in no circle.

An import inside a function counts like any other. docs/architecture.md describes the same layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

PACKAGE = "horovod_transformer"

# From the top down. A module stands in the layer of the longest name here that it begins with, and imports
# from its own layer and from those below.
LAYERS = (
    ("__init__", "__main__", "example"),
    ("commands",),
    ("training",),
    ("training.metrics", "training.optim"),
    ("export", "planning", "prepare"),
    ("reports",),
    ("evaluation",),
    ("generation",),
    ("data",),
    ("books", "checkpoint", "distributed", "model"),
    ("model.cpu",),
    ("config", "config_sections", "launch", "metrics", "nested", "planning.rates", "precision", "tokenizer"),
    ("errors", "system"),
)

# Old names that documents have promised. Each file only forwards to the module's new home, when asked.
FORWARDING = {
    "command_line": "commands.command_line",
    "data": "books.sources",
    "data.prepare": "prepare.prepare",
    "data.report": "prepare.figures",
    "distributed.run_verb": "launch.subcommand",
}

# Room -> what no file of it imports, wherever in the file: each takes seconds to load, in every rank or
# before the first one starts.
FORBIDDEN = {
    "launch": ("torch",),
    "system": ("torch",),
    "training": ("pandas", "torch._dynamo"),
}
HOROVOD_HOME = "distributed"

# A whole `Config` is resolved at the door: what lies behind takes a section of it, or a few values. Doors are
# modules or rooms that commands, scripts and notebooks call.
CONFIG_DOORS = ("commands", "config", "example", "prepare.prepare", "training.run", "training.trainer")
# Functions elsewhere that take one all the same, and why.
TAKES_CONFIG = {
    "data.dataset.open_prepared_data": "promised, in the notebook",
    "data.loader.get_dataloaders": "promised, in `src.data`",
    "generation.terminal.interactive_generation": "promised, in `src.generate`",
}

LEVELS = {name: level for level, layer in enumerate(LAYERS) for name in layer}

Graph = dict[str, dict[str, int]]
"""Module -> module that it imports -> line number."""


def read_imports(package: Path) -> Graph:
    """Read which module of a package imports which, wherever in the file the import stands.

    A module's name here is its path below the package, with dots; a folder's `__init__.py` bears the folder's
    name, the package's own is `__init__`.
    """
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        files[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return {name: _imports_of(path, files) for name, path in files.items()}


def _imports_of(path: Path, files: dict[str, Path]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import with the package's whole name"
            # `from package import module` names a module, `from package.module import name` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, inside = name.partition(".")
            if first == PACKAGE:
                while inside not in files and "." in inside:
                    inside = inside.rpartition(".")[0]
                found.setdefault(inside if inside in files else "__init__", node.lineno)
    return found


def arrows_back_up(graph: Graph) -> list[str]:
    """Describe each import of a module that stands higher than the one that imports it."""
    return [
        f"{module} imports {imported} (line {line}), which stands above it"
        for module, imports in graph.items()
        for imported, line in imports.items()
        if _level(imported) < _level(module) and FORWARDING.get(module) != imported
    ]


def _layer(module: str) -> str:
    """The longest name in LAYERS that a module begins with, or its room if there is none."""
    name = module
    while name not in LEVELS and "." in name:
        name = name.rpartition(".")[0]
    return name


def _level(module: str) -> int:
    # A module without a layer is another test's to name.
    return LEVELS.get(_layer(module), len(LAYERS))


def packages_of(path: Path) -> set[str]:
    """What a file imports, this package or another, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imports_any(path: Path, packages: Iterable[str]) -> list[str]:
    """Which of these packages, or of what is in them, a file imports."""
    return [
        name
        for name in sorted(packages_of(path))
        if any(name == package or name.startswith(f"{package}.") for package in packages)
    ]


_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def takes_config(path: Path) -> list[str]:
    """Functions of a file with a parameter that is a whole `Config`, and classes with a field that is one."""
    found = []

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}" if isinstance(child, ast.ClassDef | _FUNCTIONS) else name
            if isinstance(child, _FUNCTIONS):
                arguments = child.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                every += [one for one in (arguments.vararg, arguments.kwarg) if one]
                if any(_is_config(one.annotation) for one in every):
                    found.append(inner)
            is_field = isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign)
            if is_field and _is_config(child.annotation):
                found.append(name)
            visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return [name.lstrip(".") for name in found]


def _is_config(annotation: ast.expr | None) -> bool:
    """Whether an annotation names `Config`, alone or as one of several types."""
    return annotation is not None and re.search(r"\bConfig\b", ast.unparse(annotation)) is not None


def find_circle(graph: Graph) -> list[str]:
    """Return modules that import each the next, the last being the first again; empty if there are none."""
    finished: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        path.append(module)
        for imported in graph[module]:
            if circle := visit(imported):
                return circle
        path.pop()
        finished.add(module)
        return []

    for module in graph:
        if circle := visit(module):
            return circle
    return []


@pytest.fixture(scope="module")
def graph(root: Path) -> Graph:
    return read_imports(root / PACKAGE)


def test_every_module_stands_in_a_layer(graph: Graph) -> None:
    layers = {_layer(module) for module in graph} - {"command_line"}
    assert not layers - set(LEVELS), f"add to LAYERS in {Path(__file__).name}: {sorted(layers - set(LEVELS))}"
    assert not set(LEVELS) - layers, f"LAYERS names what is not there: {sorted(set(LEVELS) - layers)}"


def test_no_import_runs_back_up(graph: Graph) -> None:
    assert not arrows_back_up(graph), "\n".join(arrows_back_up(graph))


def test_no_imports_in_a_circle(graph: Graph) -> None:
    assert not find_circle(graph), " -> ".join(find_circle(graph))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_what_a_room_does_without(root: Path, room: str) -> None:
    for path in sorted((root / PACKAGE / room).rglob("*.py")):
        found = imports_any(path, FORBIDDEN[room])
        assert not found, f"{path.relative_to(root)} imports {found}: {room}/ does without"


def test_launch_and_system_load_no_torch(root: Path, run_python) -> None:
    """Neither by themselves nor through what they import."""
    rooms = [root / PACKAGE / room for room in ("launch", "system")]
    modules = [path.relative_to(root).with_suffix("") for room in rooms for path in sorted(room.glob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules]
    program = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    assert run_python("-c", program).stdout == "False\n"


def test_horovod_is_imported_in_one_room(root: Path) -> None:
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if (root / PACKAGE / HOROVOD_HOME) not in path.parents:
            found = imports_any(path, ["horovod"])
            assert not found, f"{path.relative_to(root)} imports {found}; Horovod's home is {HOROVOD_HOME}/"


def test_forwarding_files_forward_and_do_nothing_else(root: Path) -> None:
    for old in FORWARDING:
        path = root / PACKAGE / old.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert functions == ["__getattr__"], path


def test_a_whole_config_stays_at_the_doors(root: Path) -> None:
    found = set()
    for path in sorted((root / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(root / PACKAGE).with_suffix("").parts)
        if not any(module == door or module.startswith(f"{door}.") for door in CONFIG_DOORS):
            found |= {f"{module}.{name}" for name in takes_config(path)}
    allowed = TAKES_CONFIG.keys()
    assert not found - allowed, f"take a section of the config, or values: {sorted(found - allowed)}"
    assert not allowed - found, f"take no Config any more: {sorted(allowed - found)}"


def test_the_package_stands_alone(root: Path) -> None:
    """`src/`, scripts and tests use the package; it is installed without them."""
    for path in (root / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in ("src", "scripts", "tests", "benchmarks"), path


def test_the_document_shows_every_file(root: Path) -> None:
    """docs/architecture.md has a section for each folder, and a row for each of its files."""
    shown: dict[str, list[str]] = {}
    for line in (root / "docs/architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            rows = shown.setdefault(line.split("`")[1].rstrip("/") if "`" in line else ".", [])
        elif line.startswith("| `"):
            rows.append(line.split("`")[1])
    there: dict[str, list[str]] = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if path.name != "__init__.py":
            there.setdefault(str(path.parent.relative_to(root / PACKAGE)), []).append(path.name)
    assert {room: sorted(names) for room, names in shown.items()} == there


@pytest.fixture
def package(tmp_path: Path) -> Callable[[dict[str, str]], Graph]:
    """Make a small package of `{module: source}` and read its imports."""

    def make(sources: dict[str, str]) -> Graph:
        for name, source in sources.items():
            path = tmp_path / PACKAGE / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return read_imports(tmp_path / PACKAGE)

    return make


def test_a_lazy_import_back_up_is_named(package) -> None:
    graph = package(
        {
            "training/trainer": "",
            "generation": f"def write():\n    from {PACKAGE}.training import trainer\n",
        }
    )
    assert arrows_back_up(graph) == [
        "generation imports training.trainer (line 2), which stands above it",
    ]


def test_a_circle_is_named(package) -> None:
    graph = package(
        {
            "data/__init__": f"from {PACKAGE}.data.loader import load\n",
            "data/loader": f"from {PACKAGE}.data.sampler import Plan\n",
            "data/sampler": f"def plan():\n    import {PACKAGE}.data.loader\n",
            "errors": "",
        }
    )
    assert find_circle(graph) == ["data.loader", "data.sampler", "data.loader"]
    assert not arrows_back_up(graph)


def test_what_an_import_names(package) -> None:
    graph = package(
        {
            "__init__": "",
            "errors": "",
            "model/__init__": "",
            "model/transformer": f"from {PACKAGE} import load_config, errors\nimport {PACKAGE}.errors\n",
            "generation": f"from {PACKAGE}.model.transformer import Model\nfrom {PACKAGE} import model\n",
        }
    )
    assert graph["model.transformer"] == {"__init__": 1, "errors": 1}
    assert graph["generation"] == {"model.transformer": 1, "model": 2}


def test_who_takes_a_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "def plain(config: Config): ...\n"
        "def either(a: int, *, config: 'Config | None' = None): ...\n"
        "def section(data: DataConfig) -> Config: ...\n"
        "class Holder:\n"
        "    config: config.Config\n"
        "    def method(self, *all: Config):\n"
        "        def inside(one: list[Config]): ...\n"
        "        made: Config = load()\n"
    )
    assert takes_config(path) == ["plain", "either", "Holder", "Holder.method", "Holder.method.inside"]
