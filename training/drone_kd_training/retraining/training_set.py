# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training set of a retraining: mined and replayed base frames with teacher predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drone_kd.files import atomic_folder
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import (
    DataSet,
    image_paths,
    label_lines,
    label_path,
    load_data,
    read_labels,
    write_list,
)
from drone_kd_training.data.names import DataError
from drone_kd_training.data.near_duplicates import NearDuplicates
from drone_kd_training.export.calibration import spread
from drone_kd_training.mining.annotation_formats import read_corrected
from drone_kd_training.models.checkpoints import UnusableModelError, match_classes
from drone_kd_training.teachers.predict import check_stems, predict
from drone_kd_training.teachers.teachers import CLASSES_FILE, Predictions, read_predictions


@dataclass(frozen=True)
class Mined:
    """Folder written by ``drone-kd mine``.

    Attributes:
        data: its data set; the validation split holds the held-out frames.
        labelled: training frames whose labels a person corrected.
        unlabelled: the other training frames.
        teacher: predictions for all frames.
        corrected: stems of all corrected frames.
    """

    data: DataSet
    labelled: list[Path]
    unlabelled: list[Path]
    teacher: Predictions
    corrected: set[str]

    @property
    def train(self) -> list[Path]:
        """All training frames."""
        return self.labelled + self.unlabelled


def read_mined(folder: Path) -> Mined:
    """Read a folder of ``drone-kd mine``; DataError if something needed is missing."""
    for name, problem in (
        ("data.yaml", "is not a folder of `drone-kd mine`"),
        ("images/train", "has no frames to train on"),
        ("images/val", "has no held-out frames to judge a candidate by: mine a longer flight"),
        (_predictions_folder(folder).name, "has no teacher predictions"),
    ):
        part = folder / name
        if not part.exists() or (part.is_dir() and not any(part.iterdir())):
            raise DataError(f"{one_line(folder)} {problem} ({name} is missing)")
    data = load_data(folder / "data.yaml")
    train = image_paths(data.train)
    if not any(len(read_labels(label_path(p), len(data.names))) for p in image_paths(data.val)):
        shown = one_line(data.val)
        raise DataError(f"{shown} has no labelled object: nothing to judge a candidate by")
    corrected = read_corrected(folder)
    return Mined(
        data,
        [path for path in train if path.stem in corrected],
        [path for path in train if path.stem not in corrected],
        read_predictions(str(_predictions_folder(folder)), data.names),
        corrected,
    )


def _predictions_folder(mined: Path) -> Path:
    """Return the folder of the teacher's predictions; version 0.1 called it answers."""
    old = mined / "answers"
    return old if old.is_dir() else mined / "predictions"


def replay_frames(base: DataSet, mined: Mined, replay: float) -> list[Path]:
    """Return the base frames for the training set: at least one, evenly spaced over the base.

    ``replay``: share of base frames in the training set, in [0, 1). Raises DataError if a base
    frame and a mined frame have the same name.
    """
    count = max(1, round(len(mined.train) * replay / (1 - replay)))
    frames = spread(image_paths(base.train), count)
    check_stems([*frames, *mined.train])
    own = {path.stem for path in mined.train}
    if both := sorted(own & {path.stem for path in frames}):
        raise DataError(
            f"{len(both)} frames of base and mined have the same name, such as "
            f"{one_line(both[0], 60)}, and predictions go by name: rename the flight and mine it "
            "again"
        )
    return frames


def write_training_set(
    folder: Path, base: DataSet, frames: Sequence[Path], mined: Mined, teacher: str
) -> tuple[Path, Path, Path]:
    """Write lists of frames, data.yaml and teacher predictions; finished steps are not repeated.

    ``frames``: those of the base in the training set. ``teacher``: checkpoint, or folder of
    predictions for the base's training frames. Returns data.yaml, the list of unlabelled frames,
    and the folder of predictions for all frames. Raises DataError if base frames have no
    predictions, and UnusableModelError if the teacher cannot be used.
    """
    taught = teacher_labelled(frames)
    lists = {
        "base": frames,
        "labelled": [*(path for path in frames if path not in taught), *mined.labelled],
        "unlabelled": [*mined.unlabelled, *(path for path in frames if path in taught)],
    }
    for name, paths in lists.items():
        write_list(folder / f"{name}.txt", paths)
    split = replace(base, train=(folder / "labelled.txt").resolve(), test=None)
    data = split.write_resolved(folder / "data.yaml")
    predictions = folder / "predictions"
    if not predictions.is_dir():
        _merge_predictions(_predict_base(teacher, base, folder), frames, mined, predictions)
    return data.resolve(), (folder / "unlabelled.txt").resolve(), predictions.resolve()


def teacher_labelled(frames: Iterable[Path]) -> set[Path]:
    """Return the frames of mined data sets whose labels no person corrected.

    Frames keep these labels when a mined data set joins the base (by its folder, a list or links).
    """
    corrected: dict[Path, set[str] | None] = {}
    found = set()
    for path in frames:
        folders = label_path(path.resolve()).parents
        root = folders[min(2, len(folders) - 1)]  # of labels/SPLIT/NAME.txt
        if root not in corrected:
            mined = (root / "mined.csv").is_file()
            corrected[root] = read_corrected(root) if mined else None
        known = corrected[root]
        if known is not None and path.stem not in known:
            found.add(path)
    return found


def excluded_frames(base: DataSet, mined: Mined, frames: Sequence[Path]) -> set[Path]:
    """Return the validation frames of base and mined that must not judge a candidate.

    They are near duplicates of learning frames (``frames`` and the mined ones), or of the base and
    labelled by a teacher. Raises DataError if nothing is left of one of the splits.
    """
    learned = NearDuplicates([*mined.train, *frames], "training")
    taught = teacher_labelled(image_paths(base.val))
    excluded = set(taught)
    for name, data in (("base", base), ("mined", mined.data)):
        paths = image_paths(data.val)
        for path in track(paths, f"Compare held-out images of {name}", "image"):
            if path not in excluded and _is_learned(path, learned):
                excluded.add(path)
        if excluded.issuperset(paths):
            raise DataError(
                f"{one_line(data.val)}: expected frames to judge a candidate by, got {len(paths)} "
                "that repeat learning frames or that a teacher labelled; label frames of another "
                "flight"
            )
    return excluded


def _is_learned(path: Path, learned: NearDuplicates) -> bool:
    try:
        return learned.find(read_image(path)) is not None
    except SourceError:
        return False  # the evaluation ignores it, with a warning


def _predict_base(teacher: str, base: DataSet, folder: Path) -> Predictions:
    """Return a teacher's predictions for the base frames; a checkpoint runs only once."""
    if Path(teacher).is_dir():
        return read_predictions(teacher, base.names)
    if Path(teacher).suffix != ".pt":
        raise UnusableModelError(
            "--teacher must be a checkpoint (.pt) or a folder of YOLO .txt, got "
            f"{one_line(teacher)}"
        )
    written = folder / "base-predictions"
    if not written.is_dir():
        listed = replace(base, train=(folder / "base.txt").resolve(), test=None)
        predict(teacher, listed.write_resolved(folder / "base.yaml"), written)
    return read_predictions(str(written), base.names)


def _merge_predictions(
    teacher: Predictions, frames: Sequence[Path], mined: Mined, output: Path
) -> None:
    """Write the predictions for all frames into one folder, in the model's classes.

    A corrected frame gets its labels, with a score of 1, in place of predictions.
    """
    names = mined.data.names
    base_classes = dict(match_classes(names, teacher.names).pairs)
    mined_classes = dict(match_classes(names, mined.teacher.names).pairs)
    _check_teacher(teacher, frames, mined, base_classes, mined_classes)
    order = sorted(base_classes.keys() & mined_classes.keys())
    base_order, mined_order = ([c[i] for i in order] for c in (base_classes, mined_classes))
    texts = {p.stem: _prediction_lines(teacher, p.stem, base_order) for p in frames}
    for path in mined.unlabelled:
        texts[path.stem] = _prediction_lines(mined.teacher, path.stem, mined_order)
    for path in mined.labelled:
        rows = read_labels(label_path(path), len(names))
        rows = rows[np.isin(rows[:, 0], order)]
        ids = np.searchsorted(order, rows[:, 0])
        texts[path.stem] = label_lines(ids, rows[:, 1:], np.ones(len(ids)))
    with atomic_folder(output) as temporary:
        class_list = "".join(f"{names[i]}\n" for i in order)
        (temporary / CLASSES_FILE).write_text(class_list, encoding="utf-8")
        for stem, text in texts.items():
            (temporary / f"{stem}.txt").write_text(text, encoding="utf-8")


def _check_teacher(
    teacher: Predictions,
    frames: Sequence[Path],
    mined: Mined,
    base_classes: dict[int, int],
    mined_classes: dict[int, int],
) -> None:
    """Raise unless ``teacher`` predicted all frames and knows all predicted classes.

    ``base_classes``, ``mined_classes``: the model's class -> the predictions' class.
    """
    # The list of the mined predictions names the model's classes, whatever their teacher knows.
    predicted = {c for _, s in mined.teacher.found.values() for c in s.argmax(axis=1).tolist()}
    unknown = {i for i, c in mined_classes.items() if c in predicted} - base_classes.keys()
    if unknown:
        names = [mined.data.names[i] for i in sorted(unknown)]
        raise UnusableModelError(
            f"the mined frames have predictions of {one_line(names)}, which --teacher does not "
            f"know (it knows {one_line(list(teacher.names))}): give the teacher that they were "
            "mined with"
        )
    if missing := [path for path in frames if path.stem not in teacher.found]:
        raise DataError(
            f"{len(missing)} of {len(frames)} base frames have no predictions, such as "
            f"{one_line(missing[0].name)}: `drone-kd predict` writes them"
        )


def _prediction_lines(predictions: Predictions, stem: str, classes: list[int]) -> str:
    """Return a frame's predictions as label lines with confidence.

    ``classes``: the classes to keep, by the predictions' numbers; their position is written.
    """
    boxes, scores = predictions.found.get(stem, (np.zeros((0, 4)), np.zeros((0, 1))))
    position = {class_id: k for k, class_id in enumerate(classes)}
    class_ids = scores.argmax(axis=1)
    kept = np.isin(class_ids, classes)
    ids = [position[c] for c in class_ids[kept].tolist()]
    return label_lines(ids, boxes[kept], scores[kept].max(axis=1))
