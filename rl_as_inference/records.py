"""What a run was: the record in its folder, read, checked and written here and nowhere else."""

from __future__ import annotations

import dataclasses
import functools
import getpass
import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rl_as_inference.whole_files import written_whole

__all__ = [
    "OF_RANKS",
    "PATTERNS",
    "RECORD",
    "FoundProblem",
    "RunRecord",
    "files_of",
    "has_begun",
    "is_ours",
    "listed_files",
    "path_of",
    "versions",
]

RECORD = "run.json"
"""The file that makes a folder a run's."""

OF_RANKS = "checkpoint.rank*.safetensors"
PATTERNS = ("tensorboard/events.out.tfevents.*", "videos/episode-*.mp4", OF_RANKS)
"""Names that a record may tell of before they are known; no other may have a ``*`` that means anything."""

_COMMANDS = ("compare", "fit", "train", "robustness", "sweep")
_GO_ON = ("train", "sweep")
"""Those of which an unfinished one has something to go on from."""


class FoundProblem(NamedTuple):
    """Where the problem of a run is now."""

    name: str
    changed: bool
    """Whether its file has changed since the run began."""


@dataclass(frozen=True)
class RunRecord:
    """What was run, from which it can be had again: ``run.json``, where all of this is one flat object."""

    command: str
    """``"compare"``, ``"fit"``, ``"train"``, ``"robustness"`` or ``"sweep"``, whether from a shell or from Python."""
    problem: str | None
    """As it was named: a model, a Gymnasium id or a Python file; None for an object that has no name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of the problem."""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that made the run what it is, as plain data."""
    problem_sha256: str | None = None
    """The hash of the Python file that the problem is in; None if it is in none."""
    problem_path: str | None = None
    """Where that file was, absolute."""
    problem_path_from_run: str | None = None
    """And as seen from the run's folder, for what moves together."""
    origin: str | None = None
    """A number of the user and the machine that made the run, which tells neither; None in older records."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages on which results depend."""
    finished: bool = False
    """Whether the run came to its end."""
    files: tuple[str, ...] = ()
    """The run's own files in its folder, which a run in its place takes away: those that may come while it goes on, and
    at its end those that came."""

    sums: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of those files that have no checksum in themselves, of a run that has ended."""

    @classmethod
    def of(cls, command: str, problem: str | None, folder: Path | None, **parts: Any) -> RunRecord:
        """Returns the record of a run that begins now, with the hash and the places of its problem's file."""
        record = cls(command, problem, versions=versions("numpy"), origin=_origin(), **parts)
        path = None if problem is None else path_of(problem)
        if path is None or not path.is_file():
            return record
        return dataclasses.replace(
            record,
            problem_sha256=_sha256(path),
            problem_path=str(path.resolve()),
            problem_path_from_run=None if folder is None else os.path.relpath(path.resolve(), folder.resolve()),
        )

    @classmethod
    def read(
        cls, folder: Path, argument: str = "RUN", commands: Collection[str] = _COMMANDS, *, unfinished: bool = False
    ) -> RunRecord:
        """Returns the record in ``folder``.

        Args:
            folder: of a run.
            argument: what an error begins with.
            commands: of which the run may be.
            unfinished: whether it may be one that did not come to its end, as runs of ``train`` may.

        Raises:
            ValueError: if there is no such record, it is damaged, or of another command.
        """
        wanted = f"a run of rlai {' or '.join(commands)} is needed"
        if not folder.is_dir():
            missing = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ValueError(f"{argument}: {str(folder)!r} {missing}; {wanted}")
        path = folder / RECORD
        if not path.is_file():
            raise ValueError(f"{argument}: {str(folder)!r} is not a run folder (it has no {RECORD}); {wanted}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(argument, path, error) from error
        if not isinstance(found, dict):
            raise _damaged(argument, path, f"it holds a {type(found).__name__}")
        if found and not {"command", "files"} & found.keys():
            raise ValueError(f"{argument}: {str(folder)!r} is not a run folder (its {RECORD} is another's); {wanted}")
        if found.pop("sha256", None) not in (None, _sum_of(found)):
            raise _damaged(argument, path, "it is not what was written; without its sha256 it is taken as it is")
        if found.get("command") is None and found.get("finished") is False:
            raise ValueError(_unfinished(argument, folder))
        record = cls._from_json(found, argument, path)
        if record.command not in commands:
            raise ValueError(f"{argument}: {str(path)!r} is of rlai {record.command}, and {wanted}")
        if not record.finished and record.command not in _GO_ON and not unfinished:
            raise ValueError(_unfinished(argument, folder))
        return record

    @classmethod
    def _from_json(cls, found: dict[str, Any], argument: str, path: Path) -> RunRecord:
        names = [each.name for each in dataclasses.fields(cls) if each.name != "settings"]
        parts = {name: found[name] for name in names if name in found}
        kinds: dict[str, Any] = {"seed": int, "options": dict, "versions": dict, "files": list, "finished": bool}
        kinds["sums"] = dict
        if found.get("command") not in _COMMANDS:
            raise _damaged(argument, path, f"its command is {found.get('command')!r}")
        if type(found.get("seed")) is not int:
            raise _damaged(argument, path, f"its seed is {found.get('seed')!r}")
        for name, kind in kinds.items():
            if name in parts and not isinstance(parts[name], kind):
                raise _damaged(argument, path, f"its {name} is {parts[name]!r}")
        problem = parts.setdefault("problem", None)
        if not isinstance(problem, str | None) or (problem is None and parts["command"] in ("compare", "fit")):
            raise _damaged(argument, path, f"its problem is {problem!r}")
        parts["files"] = tuple(parts.get("files", ()))
        former = {"steps": "num_steps"} if parts["command"] == "train" else {}  # as the first runs called it
        return cls(**parts, settings={former.get(key, key): value for key, value in found.items() if key not in names})

    def write(self, folder: Path) -> None:
        """Writes the record into ``folder``."""
        found = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "settings"}
        found |= self.settings
        found = json.loads(json.dumps(found))
        found["sha256"] = _sum_of(found)
        with written_whole(folder / RECORD) as path:
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    def changed(self, **parts: Any) -> RunRecord:
        """Returns the record with other values; what is no field of it is one of its settings."""
        names = {each.name for each in dataclasses.fields(self)}
        settings = {**self.settings, **{name: value for name, value in parts.items() if name not in names}}
        return dataclasses.replace(
            self, **{"settings": settings, **{name: value for name, value in parts.items() if name in names}}
        )

    def setting(self, name: str, argument: str = "RUN") -> Any:
        """Returns a setting.

        Raises:
            ValueError: if the record lacks it, as no record that a run wrote does.
        """
        try:
            return self.settings[name]
        except KeyError as error:
            raise ValueError(
                f"{argument}: {RECORD} is not as rlai {self.command} writes it: it has no {name}"
            ) from error

    def check_file(self, folder: Path, name: str, argument: str = "RUN") -> None:
        """Raises ValueError if a file in the run's folder is no longer what it was when the run ended."""
        path = folder / name
        if name in self.sums and path.is_file() and _sha256(path) != self.sums[name]:
            raise _damaged(argument, path, "it is not what was written")

    def summed(self, folder: Path) -> RunRecord:
        """Returns the record with the sums of the files that it has."""
        names = [name for name in self.files if name.endswith((".json", ".csv"))]
        return dataclasses.replace(self, sums={name: _sha256(folder / name) for name in names})

    def find_problem(
        self, folder: Path, argument: str = "RUN", *, trust: bool = False, may_change: bool = True
    ) -> FoundProblem:
        """Returns a name that leads to the problem from here.

        A Python file is looked for where it was, where it lies from the run's folder, and where its name leads from
        here; the first that is as it was then is taken. Loading it runs it. So it is taken without a word only from
        where the run began, or anywhere by whom the run was made, on the same machine.

        Args:
            folder: the run's.
            argument: what an error begins with.
            trust: take a file that came with a run from elsewhere, or that has changed since.
            may_change: whether a file that has changed may be taken at all.

        Raises:
            ValueError: if the problem has no name, its file is gone, or is not to be trusted.
        """
        if self.problem is None:
            raise ValueError(
                f"{argument}: the problem of the run in {str(folder)!r} was made in Python and has no name to find it "
                f"by; in Python, give it: load_run(folder, env=...)"
            )
        trust_here = trust or (self.origin is not None and self.origin == _origin())
        elsewhere = f"{argument}: the run in {str(folder)!r} comes from elsewhere, and opening it runs Python code that"
        named = path_of(self.problem)
        if named is None:
            if ":" in self.problem and not trust_here:  # Gymnasium imports what stands before it
                module = self.problem.partition(":")[0]
                raise ValueError(f"{elsewhere} it names, the module {module}; if you trust it, say --trust")
            return FoundProblem(self.problem, False)
        places = [named] if self.problem_path is None else [Path(self.problem_path), named]
        if self.problem_path_from_run is not None:
            places.insert(1, folder / self.problem_path_from_run)
        places = list({place.resolve(): place for place in places}.values())
        there = [place for place in places if place.is_file()]
        if not there:
            looked = ", ".join(str(place.resolve()) for place in places)
            raise ValueError(f"{argument}: the run's problem {named.name} is no longer there; put it back: {looked}")
        for place in there:
            if self.problem_sha256 is not None and _sha256(place) == self.problem_sha256:
                if not trust_here and str(place.resolve()) != self.problem_path:
                    raise ValueError(f"{elsewhere} came with it, {place}; read that file, and say --trust if you do")
                return FoundProblem(_replace_path(self.problem, place), False)
        if self.problem_sha256 is None and not trust:
            raise ValueError(
                f"{argument}: the run's {RECORD} names Python code, {there[0]}, and has no hash to know it by; opening "
                f"the run runs it: read that file, and say --trust if you trust it"
            )
        if self.problem_sha256 is not None and not (trust and may_change):
            mend = "put the old file back, or run it again" + (", or say --trust" if may_change else "")
            raise ValueError(
                f"{argument}: {there[0]} has changed since the run began (its SHA-256 is no longer "
                f"{self.problem_sha256[:12]}…), so that what was learned and the problem do not go together; {mend}"
            )
        return FoundProblem(_replace_path(self.problem, there[0]), self.problem_sha256 is not None)


def path_of(problem: str) -> Path | None:
    """Returns the Python file that ``problem`` names (``lake.py``, ``lake.py:name``); None if it names none."""
    path = problem.partition(":")[0]
    return Path(path) if path.endswith(".py") or ("/" in path and Path(path).exists()) else None


def _replace_path(problem: str, path: Path) -> str:
    """Returns ``problem`` with another path to its Python file, and the same name in it."""
    _, colon, name = problem.partition(":")
    return f"{path}{colon}{name}"


def has_begun(folder: Path) -> bool:
    """Returns whether a folder's record says what is run there, and not only that it is a run's."""
    try:
        return "command" in json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def is_ours(folder: Path) -> bool:
    """Returns whether the record in a folder is one that a run wrote, whole or damaged, and not another program's."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # what a full disk or a killed run of an earlier version left
    return isinstance(found, dict) and (not found or "files" in found or found.get("command") in _COMMANDS)


def files_of(folder: Path) -> list[Path]:
    """Returns the files that an earlier run tells of as its own; never anything outside its folder."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("files", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [folder / name for name in listed_files(folder, files if isinstance(files, list) else ())]


def listed_files(folder: Path, names: Iterable[Any]) -> list[str]:
    """Returns those of the names, and of what ``PATTERNS`` among them stand for, that are files in the folder."""
    found: dict[str, None] = {}
    for name in names:
        if (
            not isinstance(name, str)
            or not name
            or "\0" in name
            or ".." in Path(name).parts
            or Path(name).is_absolute()
        ):
            continue
        paths = sorted(folder.glob(name)) if name in PATTERNS else [folder / name]
        for path in paths:
            inside = path.parent.is_dir() and path.parent.resolve() in (
                folder.resolve(),
                folder.resolve() / path.parent.name,
            )
            if inside and path.name != RECORD and os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                found[str(path.relative_to(folder))] = None
    return list(found)


def versions(*more: str) -> dict[str, str]:
    """Returns the versions of the packages on which results depend."""
    return {name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl", "gymnasium", *more)}


@functools.cache
def _origin() -> str:
    """Returns a number of this user on this machine, which tells neither."""
    try:  # images of containers may share it, and their hosts' names do not differ always: both together
        machine = Path("/etc/machine-id").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        machine = ""
    try:
        user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    return hashlib.sha256(f"rl-as-inference {machine} {platform.node()} {user}".encode()).hexdigest()[:16]


def _sum_of(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps({k: v for k, v in found.items() if k != "sha256"}, sort_keys=True).encode()
    ).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(argument: str, path: Path, cause: object) -> ValueError:
    return ValueError(f"{argument}: {str(path)!r} is damaged ({cause}); run it again with --overwrite")


def _unfinished(argument: str, folder: Path) -> str:
    return f"{argument}: the run in {str(folder)!r} did not finish; run it again with --overwrite"
