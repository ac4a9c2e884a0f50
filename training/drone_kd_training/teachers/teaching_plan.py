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
        images: unlabelled             # unlabelled: a folder or a list file
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
        pseudo_threshold: 0.5          # of a score; or {person: 0.7, car: 0.4}
        pseudo_threshold_on: {streets: {person: 0.8}}
        weight: {person: 0.5}          # where its precision cannot be measured
    predictions: predictions           # folder of the prediction cache; this is the default

Relative paths start at the file's own folder, and ``predictions`` is inside it. Names of sources
and teachers become names of files. An image is taught by the teachers of its source; a class that
neither its labels nor a teacher covers is masked there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from drone_kd.core.tiling import OFF, parse_tiling
from drone_kd.parsing import ParseError, read_yaml
from drone_kd.paths import confined
from drone_kd.text import one_line
from drone_kd_training.data.crops import MAX_SIDE, MIN_SIDE, Crops
from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.names import DataError, class_list, file_name_part, usable_path
from drone_kd_training.models.checkpoints import UnusableModelError, class_names, load_model
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teachers import holds_predictions, read_predictions

# Sources, and teachers.
MAX_ENTRIES = 1000
MAX_REPEAT = 1000
# Settings of version 0.1.
_OLD_NAMES = {
    "answers": "predictions",
    "sure": "pseudo_threshold",
    "sure_on": "pseudo_threshold_on",
}


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
        pseudo_threshold: pseudo-label threshold by the student's class.
        pseudo_threshold_on: the same by source, where it differs.
        weight: by the student's class, used where its precision cannot be measured.
    """

    name: str
    weights: Path
    names: tuple[str, ...]
    sources: tuple[str, ...]
    classes: Mapping[str, str]
    imgsz: int | None = None
    tiles: str = "off"
    pseudo_threshold: Mapping[str, float] = field(default_factory=dict)
    pseudo_threshold_on: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)

    @property
    def taught_classes(self) -> tuple[str, ...]:
        """The student's classes that it knows."""
        return tuple(dict.fromkeys(self.classes.values()))

    def threshold(self, source: str, class_name: str) -> float:
        """Return the score above which its prediction is a pseudo-label on a source."""
        return self.pseudo_threshold_on.get(source, {}).get(
            class_name, self.pseudo_threshold[class_name]
        )


@dataclass(frozen=True)
class Plan:
    """The checked file: ``names`` are the student's classes, ``teachers`` may be empty.

    ``predictions`` is the folder of the prediction cache.
    """

    names: tuple[str, ...]
    sources: tuple[Source, ...]
    teachers: tuple[Teacher, ...]
    predictions: Path

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
        if isinstance(key, (list, dict, set)):
            raise DataError(f"{_quoted(key)}: expected a name as key")
        if key in found and found[key] != value:
            was, now = _quoted(found[key]), _quoted(value)
            raise DataError(f"{_quoted(key)} is given twice: as {was} and as {now}")
        found[key] = value
    return found


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_plan(path: str | Path) -> Plan:
    """Read and check the file of sources and teachers.

    Raises:
        DataError, UnusableModelError: the file cannot be used; the message is one line.
    """
    file = Path(path)
    shown = one_line(file)
    if not os.path.isfile(file):  # noqa: PTH113  Path.is_file() raises for names that are too long
        raise DataError(f"no file of sources and teachers at {shown}")
    try:
        content = read_yaml(file, _UniqueKeys)
    except ParseError as error:
        raise DataError(str(error)) from None
    content = _with_new_names(shown, content)
    _check_keys(shown, content, {"names", "sources"}, {"teachers", "predictions"})
    if not isinstance(content["names"], list):
        raise DataError(f"{shown}: names must be a list of the student's classes, each once")
    names = class_list(content["names"], f"{shown}: names")
    root = file.resolve().parent
    agreed: dict[str, tuple[str, str]] = {}
    sources = tuple(
        _source(f"{shown}: source {name}", name, entry, root, names, agreed)
        for name, entry in _entries(shown, content, "sources")
    )
    known = {s.name for s in sources}
    teachers = tuple(
        _teacher(f"{shown}: teacher {name}", name, entry, root, names, known, agreed)
        for name, entry in _entries(shown, content, "teachers")
    )
    cache = _cache_folder(shown, root, content.get("predictions", "predictions"))
    plan = Plan(names, sources, teachers, cache)
    for source in sources:
        if not source.labelled and not plan.taught(source):
            raise DataError(
                f"{shown}: source {source.name} teaches nothing: it is unlabelled and no teacher "
                "names it among its sources"
            )
    if not any(s.labelled and s.val for s in sources):
        raise DataError(f"{shown}: no source has labels and a val split: nothing can be evaluated")
    return plan


def _with_new_names(where: str, entry: Any) -> Any:
    """Return settings with the names of this version; DataError: one is there twice."""
    if not isinstance(entry, dict):
        return entry
    if twice := {old for old, new in _OLD_NAMES.items() if {old, new} <= set(entry)}:
        raise DataError(f"{where}: {min(twice)} is the old name of {_OLD_NAMES[min(twice)]}")
    return {_OLD_NAMES.get(str(key), key): value for key, value in entry.items()}


def _cache_folder(where: str, root: Path, value: object) -> Path:
    """Return the folder of the prediction cache, which is in the file's own folder."""
    try:
        if not isinstance(value, str):
            raise ValueError(f"expected a path, got {one_line(value, 60)}")
        return confined(root / usable_path(value, "predictions"), [root])
    except ValueError as error:
        raise DataError(f"{where}: predictions: {error}") from None


def _entries(file: str, content: dict, key: str) -> list[tuple[str, dict]]:
    """Return names and settings; the names become those of files."""
    entries = content.get(key) or {}
    if not isinstance(entries, dict) or not (entries or key == "teachers"):
        raise DataError(f"{file}: {key} must map names to settings")
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{file}: expected at most {MAX_ENTRIES} {key}, got {len(entries)}")
    return [(file_name_part(str(n), f"{file}: {key}"), entry) for n, entry in entries.items()]


def _check_keys(where: object, entry: object, needed: set[str], further: set[str]) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected settings (key: value), found {type(entry).__name__}")
    if missing := needed - set(entry):
        raise DataError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := set(entry) - needed - further:
        raise DataError(
            f"{where}: unknown {one_line(', '.join(sorted(map(str, unknown))))}; known: "
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
    if not all(isinstance(n, int) and n >= 1 for n in (every, repeat)) or repeat > MAX_REPEAT:
        raise DataError(
            f"{where}: expected whole numbers ≥ 1 for every and repeat, and repeat ≤ {MAX_REPEAT}"
        )
    try:
        crops = Crops(**entry["crops"]) if "crops" in entry else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: crops: {one_line(error)}") from None
    if "images" in entry:
        if given := {"classes", "labelled"} & set(entry):
            raise DataError(f"{where}: {', '.join(sorted(given))} needs labels (data)")
        folder = _path(where, "images", root, entry["images"])
        train = tuple(image_paths(folder)[::every])
        labelled = names if entry.get("empty") else ()
        return Source(name, train, labelled=labelled, repeat=repeat, crops=crops)
    if "empty" in entry:
        raise DataError(f"{where}: empty goes with images: data has labels")
    data = load_data(_path(where, "data", root, entry["data"]))
    classes = _classes(where, entry, data.names, names, agreed)
    labelled = tuple(_strings(where, "labelled", entry.get("labelled", [*classes.values()])))
    if unknown := set(labelled) - set(classes.values()):
        shown = one_line(sorted(unknown))
        raise DataError(f"{where}: labelled names {shown}, to which no label maps")
    val = tuple(image_paths(data.val))
    train = tuple(image_paths(data.train)[::every])
    if both := set(train) & set(val):
        raise DataError(f"{where}: {one_line(min(both).name)} is in both train and val")
    return Source(name, train, val, data.names, classes, labelled, repeat, crops)


def _teacher(
    where: str, name: str, entry: dict, root: Path, names: tuple, sources: set[str], agreed: dict
) -> Teacher:
    own = {f.name for f in fields(Teacher)} - {"name", "names", "weights", "sources"}
    entry = _with_new_names(where, entry)
    _check_keys(where, entry, {"weights", "sources"}, own)
    weights = _path(where, "weights", root, entry["weights"])
    taught = tuple(_strings(where, "sources", entry["sources"]))
    if unknown := set(taught) - sources:
        shown = one_line(", ".join(sorted(unknown)))
        raise DataError(f"{where} names no source of this file: {shown}")
    if holds_predictions(weights):
        known = read_predictions(str(weights), names).names
    else:
        known = class_names(load_model(str(weights))[0])
    classes = _classes(where, entry, known, names, agreed)
    default = IGNORE_BAND[1]
    given = entry.get("pseudo_threshold", default)
    threshold = _per_class(where, "pseudo_threshold", given, names, default)
    threshold_on = {
        str(source): _per_class(where, "pseudo_threshold_on", values, names)
        for source, values in _mapping_of(where, "pseudo_threshold_on", entry).items()
    }
    if unknown := set(threshold_on) - set(taught):
        shown = one_line(sorted(unknown))
        raise DataError(f"{where}: pseudo_threshold_on names {shown}, which it does not teach")
    weight = _per_class(where, "weight", entry.get("weight", 1.0), names, 1.0)
    tiles, imgsz = str(entry.get("tiles", OFF)), entry.get("imgsz")
    try:
        parse_tiling(tiles)
    except ValueError as error:
        raise DataError(
            f"{where}: tiles: {one_line(str(error).removeprefix('tiling: '))}"
        ) from None
    if imgsz is not None and (type(imgsz) is not int or not MIN_SIDE <= imgsz <= MAX_SIDE):
        raise DataError(
            f"{where}: imgsz: expected {MIN_SIDE} to {MAX_SIDE} pixels, got {one_line(imgsz, 60)}"
        )
    return Teacher(
        name, weights, known, taught, classes, imgsz, tiles, threshold, threshold_on, weight
    )


def _classes(
    where: str, entry: dict, own: tuple[str, ...], names: tuple[str, ...], agreed: dict
) -> dict[str, str]:
    """Return {own class: the student's class}: as given, else by the same name."""
    given = _mapping_of(where, "classes", entry)
    known = {name.strip().lower() for name in own}
    targets: dict[str, str | None] = {name.strip().lower(): name for name in names}
    for key, value in given.items():
        if str(key).strip().lower() not in known:
            raise DataError(
                f"{where} maps {_quoted(key)}, which is none of its classes: {_first(own)}"
            )
        if value is not None and value not in names:
            raise DataError(
                f"{where} maps {_quoted(key)} to {_quoted(value)}, which is none of "
                f"{_first(names)}"
            )
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
            raise DataError(
                f"{where} maps {_quoted(name)} to {target!r}, but {place} to {other!r}"
            )
    if not found:
        raise UnusableModelError(
            f"{where}: none of its classes is one of the student's: it has {_first(own)}, the "
            f"student {_first(names)}; map them with classes: {{theirs: ours}}"
        )
    return found


def _path(where: str, key: str, root: Path, value: object) -> Path:
    """Return a path in the file, which starts at the file's folder; images must exist."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key}: expected a path, got {one_line(value, 60)}")
    path = root / usable_path(value, f"{where}: {key}")
    if key == "images" and not path.exists():
        raise DataError(f"{where}: {one_line(path)} does not exist")
    return path


def _strings(where: str, key: str, value: object) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (str, int)) for v in value):
        raise DataError(f"{where}: {key}: expected a list of names, got {one_line(value, 60)}")
    return [str(v) for v in value]


def _mapping_of(where: str, key: str, entry: dict) -> dict:
    value = entry.get(key) or {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: {key}: expected key: value, got {one_line(value, 60)}")
    return value


def _quoted(value: object) -> str:
    return one_line(repr(value), 60)


def _first(names: tuple[str, ...]) -> str:
    return one_line(list(names[:12]))


def _per_class(
    where: str, key: str, given: Any, names: tuple[str, ...], default: float | None = None
) -> dict[str, float]:
    """Return {class: number in (0, 1]} from one number for all, or numbers for some classes."""
    values: dict[str, Any] = given if isinstance(given, dict) else dict.fromkeys(names, given)
    for name, value in values.items():
        if name not in names or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise DataError(
                f"{where}: {key} must be a number above 0 and at most 1, or one for each of some "
                f"of {_first(names)}; got {one_line(name, 60)}: {_quoted(value)}"
            )
    rest = {} if default is None else dict.fromkeys(names, default)
    return {**rest, **{name: float(value) for name, value in values.items()}}
