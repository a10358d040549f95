"""What a run will do, settled before it begins and stored in run.json, and how a later ``--resume`` continues it.

Values that vary between measurements (how fast the network seemed, and so how many images a pipeline batch takes; which
batch size fitted into memory) are measured once and stored: every process and every continuation uses the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig, first_difference, from_plain
from bench.errors import Different, UserError
from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, as_type, typed

if TYPE_CHECKING:
    from bench.distributed import Processes
    from bench.records import Run, Setting

NEEDED = ("config", "models", "environment", "resumed", "directory", "load")  # of run.json, for a continuation
REMEDIES = {"workers": " (`workers`; by default it follows each machine's cores)"}


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """One network's part of a run."""

    label: str
    batch_size: int
    crops_per_sec: float | None  # roughly, for the size of a pipeline batch; None where it was not measured
    setting: dict[str, Any]
    expected_s: float
    description: dict[str, Any]  # for run.json
    pipeline_images_per_sec: float | None = None  # roughly, all views of the accuracy pass being made
    preset: dict[str, Any] | None = None  # models.preset.Choice

    def stored(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {**self.description, **{k: v for k, v in asdict(self).items() if k != "description"}}


def read_plans(info: dict[str, Any]) -> dict[str, NetworkPlan]:
    """Those of a run.json, by label. Raises DamagedFile for other fields than this version's."""
    names = [f.name for f in fields(NetworkPlan) if f.name != "description"]
    plans = {}
    for stored in info["models"]:
        if "label" not in stored:
            raise DamagedFile("run.json: a model lacks `label`")
        rest = {k: v for k, v in stored.items() if k not in names}
        found = {name: stored.get(name) for name in names} | {"description": rest}
        plans[stored["label"]] = typed(NetworkPlan, found, f"run.json: {stored['label']}", {"batch_size": 1})
    return plans


def read_resumable(folder: Path) -> tuple[Run, RunConfig]:
    """The run that `resume` names, and its configuration. Raises UserError when it cannot be continued."""
    from bench import records

    if not folder.is_dir():
        raise UserError(f"`resume` {folder}: there is no such folder; give the folder of a run, such as runs/nfnet-...")
    try:
        run = records.read_run(folder)
        if missing := [name for name in NEEDED if name not in run.info]:
            raise ValueError(f"its run.json holds no `{missing[0]}`: another version of this program wrote it")
        config = from_plain(RunConfig, run.info["config"])
        for model in run.info["models"]:
            typed(records.Setting, model.get("setting"), f"{folder / 'run.json'}: `setting`", records.LEAST)
        read_plans(run.info)
        as_type(run.info["load"].get("backend"), str, f"{folder / 'run.json'}: `load`, `backend`")
        as_type(run.info["environment"].get("packages"), dict[str, str | None], f"{folder / 'run.json'}: `packages`")
    except ValueError as error:
        raise UserError(f"`resume` {folder}: {error}; start a new run") from error
    return run, config


def require_same_config(stored: RunConfig, asked: RunConfig) -> None:
    """Raises UserError, naming the option, when a command line asks for another run than the folder's."""
    if difference := first_difference(stored, asked):
        name, then, now = difference
        raise UserError(
            f"`resume`: `{name}` is {_shown(then)} in the run and {_shown(now)} here; leave `{name}` out, or start "
            "another run with it"
        )


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def require_same_networks(labels: Sequence[str], info: dict[str, Any]) -> None:
    """Raises UserError, naming a network, when the configuration now means other networks: a family that has grown."""
    then = info.get("networks", labels)
    if others := set(labels) ^ set(then):
        one = min(others)
        what = "belonged to the run and does not any more" if one in then else "did not belong to the run and does now"
        raise UserError(f"`resume`: {one} {what}; start another run")


def require_same_setting(now: Setting, plan: NetworkPlan, processes: Processes) -> None:
    """Raises Different, naming the field, when what the results depend on has changed since the run began: at a
    continuation, or in another process of the run (each has its own device, perhaps on another machine)."""
    from bench.records import Setting

    then = Setting(**plan.setting)
    own = () if processes.is_main else ("device", "machine_id")
    for one in fields(Setting):
        mine, theirs = getattr(now, one.name), getattr(then, one.name)
        if one.name not in own and mine != theirs:
            where = "" if processes.is_main else f" in process {processes.rank}"
            raise Different(
                f"{one.name} of {plan.label} was {theirs!r} when the run began and is {mine!r} now{where}: its results "
                f"could not be combined. Restore the old {one.name}{REMEDIES.get(one.name, '')}, or start another run"
            )


def require_same_real_labels(file_hash: str | None, plan: NetworkPlan) -> None:
    """Raises Different when the file of `real_labels` was edited: some images are scored with the old one."""
    then = plan.description.get("real_label_hash")
    if file_hash != then:
        raise Different(
            f"the file of `real_labels` has changed since the run began (its hash was {then} and is {file_hash} now): "
            "restore it, or start another run"
        )


def require_same_packages(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Different, naming the package: predictions may differ in their last bits, and rates in more."""
    for name, version in then["packages"].items():
        if now["packages"].get(name) != version:
            raise Different(
                f"`resume`: the run was begun with {name} {version}, and this is {now['packages'].get(name)}; install "
                f"{version} again, or start a new run"
            )


def finished_phases(run: Run, setting: Setting) -> set[str]:
    """Which of a network's phases (``accuracy``, ``throughput``, ``latency``) have their lines in results.jsonl."""
    from bench.records import Absent, Accuracy, Latency, Throughput

    found = set()
    for record in run.records:
        if record.setting != setting:
            continue
        if isinstance(record, (Accuracy, Throughput, Latency)):
            found.add(record.kind)
        elif isinstance(record, Absent):
            found.add(record.what.split()[0])
    return found


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """run.json, whole or not at all."""
    write_whole(folder / "run.json", json.dumps(info, indent=2) + "\n")
