"""The rooms of the design, read from the source with ``ast``: imports point only up the page, nothing heavy is imported
before it is needed, and no module takes another's name."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipelines", "models", "bench", "analysis")
# Room -> what it may import of this project: a package, or single modules of one.
MAY_IMPORT = {
    "pipelines": ("pipelines",),
    "models": ("models", "pipelines"),
    "bench": ("bench", "models", "pipelines"),
    "analysis": (
        "analysis",
        "bench.records",
        *(f"pipelines.{planning}" for planning in ("crops", "inputspec", "data.dataset", "data.spans")),
        "pipelines.data.decode",  # PIL: figures that show pictures
    ),
}
# Commands stand above all packages: they may import any, and nothing but another command imports them.
COMMANDS = (
    "bench.run",
    "bench.compare.targets",
    "bench.experiments.activations",
    "bench.experiments.train_low_test_high",
)
HEAVY = ("torch", "torchvision", "timm", "nvidia")
# Importing one of these imports none of HEAVY: --help, planning, and reading records answer at once.
LIGHT = (
    "pipelines",
    *(f"pipelines.{name}" for name in ("batch", "crops", "inputspec")),
    *(f"pipelines.data.{name}" for name in ("dataset", "decode", "demo", "labels", "spans", "tars")),
    "models.families",
    *(f"bench.{name}" for name in ("cases", "options", "records", "setup", "run")),
)
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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
            submodules = {member for member in members if base.split(".")[0] in ROOMS and is_module(member)}
            found |= submodules | ({base} if len(submodules) < len(members) else set())
    return found


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def forbidden(path: Path) -> list[str]:
    """What a file imports of this project against the direction of the rooms."""
    room = path.relative_to(ROOT).parts[0]
    own = {name for name in imports(path) if name.split(".")[0] in ROOMS}
    if module_name(path) in COMMANDS:
        return []
    return sorted(name for name in own if not within(name, MAY_IMPORT[room]))


@pytest.mark.parametrize("path", FILES, ids=[module_name(path) for path in FILES])
def test_imports_point_only_up_the_page(path: Path) -> None:
    assert forbidden(path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipelines/x.py", "import models"),
        ("pipelines/x.py", "from models.families import FAMILIES"),
        ("pipelines/rivals/x.py", "from bench import clocks"),
        ("pipelines/x.py", "def f():\n    from ..models import predict"),
        ("models/x.py", "from bench.records import Run"),
        ("models/x.py", "if TYPE_CHECKING:\n    import bench.clocks"),
        ("bench/x.py", "from analysis.figures import FIGURES"),
        ("analysis/x.py", "from bench import records, clocks"),
        ("analysis/x.py", "import bench"),
        ("analysis/x.py", "from pipelines.backends.reference import frame"),
        ("analysis/x.py", "import models.families"),
    ],
)
def test_an_import_down_the_page_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str
) -> None:
    for room in ROOMS:
        (tmp_path / room).symlink_to(ROOT / room)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / file.split("/")[0]).unlink()
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(forbidden(path)) == 1


def test_nothing_imports_the_command() -> None:
    assert [module_name(path) for path in FILES if "bench.run" in imports(path)] == []


def test_only_their_benchmark_uses_other_peoples_loaders() -> None:
    users = {
        module_name(path) for path in FILES if any(within(name, ("pipelines.baselines",)) for name in imports(path))
    }
    assert [user for user in users if not user.startswith(("pipelines.baselines", "bench.compare.loader"))] == []


def test_the_plan_needs_numpy_only() -> None:
    outside = {name.split(".")[0] for name in imports(ROOT / "pipelines" / "crops.py")} - sys.stdlib_module_names
    assert outside == {"numpy", "pipelines"}
    assert not {name for name in imports(ROOT / "pipelines" / "inputspec.py") if "." in name}


def test_every_backend_is_named_by_a_module_and_a_class_in_it() -> None:
    """Without importing it: its library may be missing here."""
    from pipelines import BACKENDS

    for name, target in BACKENDS.items():
        module, attribute = target.split(":")
        tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
        assert attribute in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, name


@pytest.mark.parametrize("room", ROOMS)
def test_each_package_is_this_projects(room: str) -> None:
    """A stray ``models`` elsewhere on the path would be tested, and run, in place of ours."""
    spec = importlib.util.find_spec(room)
    assert spec is not None, f"{room} cannot be imported: run from {ROOT}, or pip install -e it"
    assert spec.origin == str(ROOT / room / "__init__.py"), (
        f"{room!r} is {spec.origin}, not {ROOT / room}: another package of that name comes first on sys.path"
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
