"""The structure of the project, read from the source with ``ast``: imports point only downwards, there are no import
cycles, nothing heavy is imported before it is needed, functions stay small, and no module takes another's name."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "models", "bench", "analysis")
# Package -> what it may import of this project: a package, or single modules of one.
MAY_IMPORT = {
    "pipelines": ("pipelines",),
    "models": ("models", "pipelines"),
    "bench": ("bench", "models", "pipelines"),
    "analysis": (
        "analysis",
        # Record files and how they are compared; none of these imports torch.
        *(f"bench.{name}" for name in ("errors", "files", "predictions", "records", "values")),
        "bench.measure.scores",
        *(f"pipelines.{name}" for name in ("crops", "files", "inputspec", "schemas", "text")),
        *(f"pipelines.data.{name}" for name in ("dataset", "decode", "scanning", "spans")),
        "models.families",  # the published rows: plain data
        "models.recipe",  # a file; no torch
        "models.stopping",  # rules on arrays; no torch
    ),
}
# Entry points stand above all packages: they may import any of them, and only entry points import them.
ENTRY_POINTS = (
    "bench.__main__",
    "bench.cli",
    "bench.predict",
    "bench.run",
    "analysis.make_figures",
    "analysis.report",
    "analysis.gpu_targets",
)
ENTRY_FOLDERS = ("bench/compare", "bench/experiments")  # commands of `multicrop-bench`: each has its own main(argv)
HEAVY = ("torch", "torchvision", "timm", "nvidia")
# Importing one of these imports none of HEAVY: --help, planning and reading records answer at once.
LIGHT = (
    "pipelines",
    *(f"pipelines.{name}" for name in ("batch", "crops", "inputspec")),
    *(f"pipelines.data.{name}" for name in ("dataset", "decode", "demo", "labels", "spans", "tars")),
    "models",
    "models.families",
    "models.recipe",
    *(f"bench.{name}" for name in ("cases", "cli", "config", "errors", "options", "records", "run")),
    "bench.measure.scores",
)
# What may start another program, and which.
STARTS_PROGRAMS = {
    "bench.machine": "git and nvidia-smi, for the record",
    "bench.logs": "what passes standard error on, without the lines of decoders; it imports nothing of ours",
    "bench.compare.gpu": "each measurement in a process of its own: a crash costs one step",
    "bench.compare.gpu_steps": "the GPU tests, as a step",
    "pipelines.data.labels.devkit": "SciPy's reader of meta.mat may crash on a damaged file, and not this process",
    "pipelines.data.demo": "image generation without the caller's main module",
}
MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_BENCH_FILES = 60, 8, 20
PUBLIC_KEYWORDS = {("models.multicrop", "__init__")}  # the Python API takes its settings as keywords
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STRESS_FILES = sorted((ROOT / "tests" / "stress").glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that ``from ... import`` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parent.parts
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, also for types only: ``from bench import records`` is
    bench.records, ``from pipelines.crops import cut`` is pipelines.crops."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            members = {f"{base}.{alias.name}" for alias in node.names}
            submodules = {member for member in members if base.split(".")[0] in PACKAGES and is_module(member)}
            found |= submodules | ({base} if len(submodules) < len(members) else set())
    return found


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def is_entry_point(path: Path) -> bool:
    relative = path.relative_to(ROOT)
    return module_name(path) in ENTRY_POINTS or relative.parent.as_posix() in ENTRY_FOLDERS


def forbidden(path: Path) -> list[str]:
    """What a file imports of this project against the direction of the packages."""
    own = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    if is_entry_point(path):
        return []
    package = path.relative_to(ROOT).parts[0]
    return sorted(name for name in own if not within(name, MAY_IMPORT[package]) or name in ENTRY_POINTS)


@pytest.mark.parametrize("path", FILES, ids=[module_name(path) for path in FILES])
def test_imports_point_only_downwards(path: Path) -> None:
    assert forbidden(path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipelines/x.py", "import models"),
        ("pipelines/x.py", "from models.families import FAMILIES"),
        ("pipelines/baselines/x.py", "from bench import clocks"),
        ("pipelines/x.py", "def f():\n    from ..models import predict"),
        ("models/x.py", "from bench.records import Run"),
        ("models/x.py", "if TYPE_CHECKING:\n    import bench.measure.clocks"),
        ("bench/x.py", "from analysis.figures import FIGURES"),
        ("bench/x.py", "from bench.run import main"),
        ("analysis/x.py", "from bench import records, clocks"),
        ("analysis/x.py", "import bench"),
        ("analysis/x.py", "from pipelines.backends.reference import frame"),
        ("analysis/x.py", "import models.predict"),
    ],
)
def test_an_import_upwards_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str
) -> None:
    for package in PACKAGES:
        (tmp_path / package).symlink_to(ROOT / package)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / file.split("/")[0]).unlink()
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    if line.startswith("from bench.run"):
        (tmp_path / "bench" / "run.py").touch()
    assert len(forbidden(path)) == 1


def import_graph() -> dict[str, set[str]]:
    """Module -> the project's modules that it imports, late ones and those for types included."""
    names = {module_name(path) for path in FILES}
    return {module_name(path): (imports(path) & names) - {module_name(path)} for path in FILES}


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_are_no_import_cycles() -> None:
    assert cycle_in(import_graph()) == []


def test_an_import_cycle_would_be_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})


def test_no_package_is_started_as_another_program() -> None:
    """A subprocess would hide an import, perhaps one that points upwards."""
    users = {module_name(path) for path in FILES if "subprocess" in imports(path)}
    assert users <= set(STARTS_PROGRAMS)


def test_bench_holds_only_what_a_run_needs() -> None:
    assert len(list((ROOT / "bench").glob("*.py"))) < MAX_BENCH_FILES


def large_functions(path: Path) -> list[str]:
    """Functions of more than MAX_FUNCTION_LINES lines or MAX_PARAMETERS parameters (``self`` does not count)."""
    found = []
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        parameters = len(names) - (names[:1] in (["self"], ["cls"]))
        allowed = (module_name(path), node.name) in PUBLIC_KEYWORDS
        if lines > MAX_FUNCTION_LINES or (parameters > MAX_PARAMETERS and not allowed):
            found.append(f"{node.name}: {lines} lines, {parameters} parameters")
    return found


@pytest.mark.parametrize("path", [*FILES, *STRESS_FILES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_small(path: Path) -> None:
    assert large_functions(path) == []


def test_a_large_function_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text("def f(a, b, c, d, e, f, g, h, i): ...\n\ndef g():\n" + "    pass\n" * 60)
    assert len(large_functions(path)) == 2


def test_only_their_benchmark_uses_other_peoples_loaders() -> None:
    users = {
        module_name(path) for path in FILES if any(within(name, ("pipelines.baselines",)) for name in imports(path))
    }
    assert [user for user in users if not user.startswith(("pipelines.baselines", "bench.compare.loader"))] == []


def test_the_plan_needs_numpy_only() -> None:
    outside = {name.split(".")[0] for name in imports(ROOT / "pipelines" / "crops.py")} - sys.stdlib_module_names
    assert outside <= {"numpy", "pipelines"}
    assert not {name for name in imports(ROOT / "pipelines" / "inputspec.py") if "." in name}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_this_projects(package: str) -> None:
    """A stray ``models`` elsewhere on the path would be tested, and run, in place of ours."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} cannot be imported: run from {ROOT}, or pip install -e it"
    assert spec.origin == str(ROOT / package / "__init__.py"), (
        f"{package!r} is {spec.origin}, not {ROOT / package}: another package of that name comes first on sys.path"
    )


def test_no_module_takes_a_name_of_the_standard_library() -> None:
    """``python bench/run.py`` puts bench/ first on the path: a bench/statistics.py would replace Python's."""
    named = [path for path in FILES if path.stem in sys.stdlib_module_names and not path.stem.startswith("__")]
    assert named == []


PROBE = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[2]):
    before = {heavy for heavy in json.loads(sys.argv[1]) if heavy in sys.modules}
    importlib.import_module(name)
    found[name] = [heavy for heavy in json.loads(sys.argv[1]) if heavy in sys.modules and heavy not in before]
print(json.dumps({name: heavy for name, heavy in found.items() if heavy}))
"""


def heavy_imports(modules: list[str], heavy: tuple[str, ...] = HEAVY) -> dict[str, list[str]]:
    """Module -> which of ``heavy`` its import brought in, in a fresh interpreter, one after the other."""
    command = [sys.executable, "-c", PROBE, json.dumps(heavy), json.dumps(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_light_imports_nothing_heavy() -> None:
    assert heavy_imports(list(LIGHT)) == {}


def test_analysis_needs_no_torch() -> None:
    """Records are read and drawn on machines without any of it."""
    modules = [module_name(path) for path in FILES if path.parts[len(ROOT.parts)] == "analysis"]
    assert heavy_imports([name for name in modules if not name.endswith("__main__")]) == {}


def test_the_probe_would_find_a_heavy_import() -> None:
    assert heavy_imports(["string", "statistics", "fractions"], ("fractions",)) == {"statistics": ["fractions"]}
