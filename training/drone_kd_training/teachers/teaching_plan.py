# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plan of sources and teachers, the file of `distill --teachers FILE`.

    names: [person, two-wheeler, car, truck, bus]     # the student's classes
    sources:
      thermal:
        data: hit-uav/data.yaml        # labelled, with a validation split
        labelled: [person, two-wheeler, car]   # default: every class that its names map to
        classes: {bicycle: two-wheeler, other_vehicle: null}   # default: by the same name
        every: 2                       # every second image
      streets:
        images: pictures               # unlabelled: a folder or a list file
        crops: {size: 416, scales: [1, 0.5]}   # train on windows of them
      fields:
        images: fields
        empty: true                    # checked: they show no object of any class
    teachers:
      visdrone:
        weights: visdrone.pt           # or a folder of predictions, or a COCO results .json
        imgsz: 640                     # default: as trained
        tiles: auto                    # see `drone_kd.detector.Detector`; default: off
        sources: [streets]
        classes: {pedestrian: person, van: car}
        sure: 0.5                      # pseudo-label threshold; or {person: 0.7, car: 0.4}
        sure_on: {streets: {person: 0.8}}
        weight: {person: 0.5}          # where its precision cannot be measured
    answers: answers                   # folder of the prediction cache; this is the default

Relative paths start at the file's own folder. An image is taught by the teachers of its source; a
class that neither its labels nor a teacher covers is masked there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from drone_kd_training.data.dataset import DataError, image_paths, load_data
from drone_kd_training.models.checkpoints import UnusableModelError, class_names, load_model
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import holds_predictions, read_predictions


@dataclass(frozen=True)
class Crops:
    """Training windows of images that are larger than the student's input.

    ``size`` is the side of a window in pixels, at least 32; images are resized by each of
    ``scales`` first, in (0, 2]. Every n-th window is used, and every n-th of those without an
    object.
    """

    size: int
    scales: tuple[float, ...] = (1.0,)
    every: int = 1
    empty_every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.size < 32 or min(self.every, self.empty_every) < 1 or not self.scales:
            raise ValueError("expected size ≥ 32, some scales, every ≥ 1 and empty_every ≥ 1")
        if not all(0 < scale <= 2 for scale in self.scales):
            raise ValueError(f"expected scales above 0 and at most 2, got {list(self.scales)}")


@dataclass(frozen=True)
class Source:
    """Images of one kind.

    Attributes:
        names: classes of its labels, () if it is unlabelled.
        classes: own class -> the student's.
        labelled: the student's classes that its labels cover.
        repeat: how often each image is used per epoch.
        crops: windows to train on; None: whole images.
    """

    name: str
    train: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    labelled: tuple[str, ...] = ()
    repeat: int = 1
    crops: Crops | None = None


@dataclass(frozen=True)
class Teacher:
    """A teacher and its sources.

    Attributes:
        weights: checkpoint, folder of predictions or COCO results .json.
        names: its own classes.
        sources: names of the sources that it teaches.
        classes: own class -> the student's.
        imgsz: square input in pixels; None: as trained.
        tiles: see `drone_kd.detector.Detector`.
        sure: pseudo-label threshold by the student's class.
        sure_on: the same by source, where it differs.
        weight: by the student's class, used where its precision cannot be measured.
    """

    name: str
    weights: Path
    names: tuple[str, ...]
    sources: tuple[str, ...]
    classes: Mapping[str, str]
    imgsz: int | None = None
    tiles: str = "off"
    sure: Mapping[str, float] = field(default_factory=dict)
    sure_on: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)

    @property
    def taught_classes(self) -> tuple[str, ...]:
        """The student's classes that it knows."""
        return tuple(dict.fromkeys(self.classes.values()))

    def threshold(self, source: str, class_name: str) -> float:
        """Return the score above which its prediction is a pseudo-label on a source."""
        return self.sure_on.get(source, {}).get(class_name, self.sure[class_name])


@dataclass(frozen=True)
class Plan:
    """The checked file: ``names`` are the student's classes, ``teachers`` may be empty.

    ``answers`` is the folder of the prediction cache.
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    teachers: tuple[Teacher, ...]
    answers: Path

    def teachers_of(self, source: Source) -> list[Teacher]:
        """Return the teachers of a source."""
        return [t for t in self.teachers if source.name in t.sources]

    def taught(self, source: Source) -> tuple[str, ...]:
        """Return the student's classes that some teacher of a source knows."""
        known = {name for t in self.teachers_of(source) for name in t.taught_classes}
        return tuple(name for name in self.names if name in known)

    def table(self) -> str:
        """Return a text table of sources, their images, teachers and classes."""
        lines = [f"{'source':<18}{'images':>7}  {'from':<18} classes"]
        for source in self.sources:
            rows = [("labels", source.labelled)]
            rows += [(t.name, t.taught_classes) for t in self.teachers_of(source)]
            covered = {name for _, names in rows for name in names}
            rows.append(("unlabelled: masked", tuple(n for n in self.names if n not in covered)))
            repeat = f" x {source.repeat}" if source.repeat > 1 else ""
            first = f"{source.name:<18}{str(len(source.train)) + repeat:>7}"
            for who, names in rows:
                if names:
                    lines.append(f"{first:<25}  {who:<18} {', '.join(names)}")
                    first = ""
        return "\n".join(lines)


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses a key given twice; PyYAML silently takes the last one."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    found: dict = {}
    for pair in node.value:
        key, value = (loader.construct_object(part, deep=True) for part in pair)
        if key in found and found[key] != value:
            raise DataError(f"{key!r} is given twice: as {found[key]!r} and as {value!r}")
        found[key] = value
    return found


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_plan(path: str | Path) -> Plan:
    """Read and check the file of sources and teachers.

    Raises:
        DataError, UnusableModelError: the file cannot be used; the message is one line.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no file of sources and teachers at {file}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable as yaml: {str(error).splitlines()[0]}") from error
    _check_keys(file, content, {"names", "sources"}, {"teachers", "answers"})
    names = content["names"]
    if not isinstance(names, list) or not names or len(set(names)) != len(names):
        raise DataError(f"{file}: names must be a list of the student's classes, each once")
    names = tuple(map(str, names))
    root = file.resolve().parent
    agreed: dict[str, tuple[str, str]] = {}
    sources = tuple(
        _source(f"{file}: source {name}", name, entry, root, names, agreed)
        for name, entry in _entries(file, content, "sources")
    )
    known = {s.name for s in sources}
    teachers = tuple(
        _teacher(f"{file}: teacher {name}", name, entry, root, names, known, agreed)
        for name, entry in _entries(file, content, "teachers")
    )
    plan = Plan(names, sources, teachers, root / content.get("answers", "answers"))
    for source in sources:
        if not source.labelled and not plan.taught(source):
            raise DataError(
                f"{file}: source {source.name} teaches nothing: it is unlabelled and no teacher "
                "names it among its sources"
            )
    if not any(s.labelled and s.val for s in sources):
        raise DataError(f"{file}: no source has labels and a val split: nothing can be evaluated")
    return plan


def _entries(file: Path, content: dict, key: str) -> list[tuple[str, dict]]:
    entries = content.get(key) or {}
    if not isinstance(entries, dict) or not (entries or key == "teachers"):
        raise DataError(f"{file}: {key} must map names to settings")
    return [(str(name), entry) for name, entry in entries.items()]


def _check_keys(where: object, entry: object, needed: set[str], further: set[str]) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected settings (key: value), found {type(entry).__name__}")
    if missing := needed - set(entry):
        raise DataError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := set(entry) - needed - further:
        raise DataError(
            f"{where}: unknown {', '.join(map(str, sorted(unknown)))}; known: "
            f"{', '.join(sorted(needed | further))}"
        )


def _source(where: str, name: str, entry: dict, root: Path, names: tuple, agreed: dict) -> Source:
    further = {"data", "images", "empty", "classes", "labelled", "every", "repeat", "crops"}
    _check_keys(where, entry, set(), further)
    if ("data" in entry) == ("images" in entry):
        raise DataError(
            f"{where}: expected either data (a data.yaml) or images (a folder, a list)"
        )
    every, repeat = (entry.get(key, 1) for key in ("every", "repeat"))
    if not all(isinstance(n, int) and n >= 1 for n in (every, repeat)):
        raise DataError(f"{where}: expected whole numbers ≥ 1 for every and repeat")
    try:
        crops = Crops(**entry["crops"]) if "crops" in entry else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: crops: {error}") from None
    if "images" in entry:
        if given := {"classes", "labelled"} & set(entry):
            raise DataError(f"{where}: {', '.join(sorted(given))} needs labels (data)")
        folder = root / entry["images"]
        if not folder.exists():
            raise DataError(f"{where}: {folder} does not exist")
        train = tuple(image_paths(folder)[::every])
        labelled = names if entry.get("empty") else ()
        return Source(name, train, labelled=labelled, repeat=repeat, crops=crops)
    if "empty" in entry:
        raise DataError(f"{where}: empty goes with images: data has labels")
    data = load_data(root / entry["data"])
    classes = _classes(where, entry, data.names, names, agreed)
    labelled = tuple(entry.get("labelled", dict.fromkeys(classes.values())))
    if unknown := set(labelled) - set(classes.values()):
        raise DataError(f"{where}: labelled names {sorted(unknown)}, to which no label maps")
    val = tuple(image_paths(data.val))
    train = tuple(image_paths(data.train)[::every])
    if both := set(train) & set(val):
        raise DataError(f"{where}: {min(both).name} is in both train and val")
    return Source(name, train, val, data.names, classes, labelled, repeat, crops)


def _teacher(
    where: str, name: str, entry: dict, root: Path, names: tuple, sources: set[str], agreed: dict
) -> Teacher:
    own = {f.name for f in fields(Teacher)} - {"name", "names", "weights", "sources"}
    _check_keys(where, entry, {"weights", "sources"}, own)
    weights = root / entry["weights"]
    if unknown := set(entry["sources"]) - sources:
        raise DataError(f"{where} names no source of this file: {', '.join(sorted(unknown))}")
    if holds_predictions(weights):
        known = read_predictions(str(weights), names).names
    else:
        known = class_names(load_model(str(weights))[0])
    classes = _classes(where, entry, known, names, agreed)
    sure = _per_class(where, "sure", entry.get("sure", IGNORE_BAND[1]), names, IGNORE_BAND[1])
    sure_on = {
        source: _per_class(where, "sure_on", values, names)
        for source, values in (entry.get("sure_on") or {}).items()
    }
    if unknown := set(sure_on) - set(entry["sources"]):
        raise DataError(f"{where}: sure_on names {sorted(unknown)}, which it does not teach")
    weight = _per_class(where, "weight", entry.get("weight", 1.0), names, 1.0)
    taught, tiles = tuple(entry["sources"]), str(entry.get("tiles", "off"))
    return Teacher(
        name, weights, known, taught, classes, entry.get("imgsz"), tiles, sure, sure_on, weight
    )


def _classes(
    where: str, entry: dict, own: tuple[str, ...], names: tuple[str, ...], agreed: dict
) -> dict[str, str]:
    """Return {own class: the student's class}: as given, else by the same name."""
    given = entry.get("classes") or {}
    known = {name.strip().lower() for name in own}
    targets: dict[str, str | None] = {name.strip().lower(): name for name in names}
    for key, value in given.items():
        if str(key).strip().lower() not in known:
            raise DataError(
                f"{where} maps {key!r}, which is none of its classes: {list(own)[:12]}"
            )
        if value is not None and value not in names:
            raise DataError(f"{where} maps {key!r} to {value!r}, which is none of {list(names)}")
        targets[str(key).strip().lower()] = value
    found: dict[str, str] = {}
    for name in own:
        key = name.strip().lower()
        target = targets.get(key)
        if target is None:
            continue
        found[name] = target
        other, place = agreed.setdefault(key, (target, where))
        if other != target:
            raise DataError(f"{where} maps {name!r} to {target!r}, but {place} to {other!r}")
    if not found:
        raise UnusableModelError(
            f"{where}: none of its classes is one of the student's: it has {list(own)[:12]}, the "
            f"student {list(names)}; map them with classes: {{theirs: ours}}"
        )
    return found


def _per_class(
    where: str, key: str, given: Any, names: tuple[str, ...], default: float | None = None
) -> dict[str, float]:
    """Return {class: number in (0, 1]} from one number for all, or numbers for some classes."""
    values: dict[str, Any] = given if isinstance(given, dict) else dict.fromkeys(names, given)
    for name, value in values.items():
        if name not in names or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise DataError(
                f"{where}: {key} must be a number above 0 and at most 1, or one for each of some "
                f"of {list(names)}; got {name}: {value!r}"
            )
    rest = {} if default is None else dict.fromkeys(names, default)
    return {**rest, **{name: float(value) for name, value in values.items()}}
