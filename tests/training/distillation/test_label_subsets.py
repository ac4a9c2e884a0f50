"""Which frames keep their labels."""

from pathlib import Path

import pytest

from drone_kd_training.data.dataset import DataError, image_paths, label_path, load_data
from drone_kd_training.distillation.label_subsets import (
    annotated,
    choose_frames,
    frames,
    write_subset,
)
from tiny_training import draw_set


def tiles_of(root: Path, count: int, tiles: int = 3) -> Path:
    """Name the training images as tiles of frames; every third one has no object."""
    data = draw_set(root, train=count * tiles)
    for number, path in enumerate(image_paths(load_data(data).train)):
        frame, tile = divmod(number, tiles)
        name = f"f{frame:02d}-0000-{480 * tile:04d}"
        label = label_path(path)
        if tile == tiles - 1:
            label.write_text("")
        label.rename(label.with_name(f"{name}.txt"))
        path.rename(path.with_name(f"{name}.png"))
    return data


def test_tiles_are_grouped_by_frame():
    names = ["a/x-0000-0000.png", "b/x-0000-0000.png", "a/x-0000-0480.png", "a/2026-11.png"]
    assert frames(Path(name) for name in names) == [
        [Path(names[0]), Path(names[2])],
        [Path(names[1])],
        [Path(names[3])],
    ]


def test_more_labels_contain_fewer_ones_and_subsets_differ():
    five, ten = choose_frames(50, 5, 3), choose_frames(50, 10, 3)
    assert len(five) == 5 and len(ten) == 10 and five < ten
    assert five == choose_frames(50, 5, 3) != choose_frames(50, 5, 4)
    assert choose_frames(4, 4, 0) == {0, 1, 2, 3}
    for labels in (0, 51):
        with pytest.raises(DataError, match=f"expected 1 to 50 labelled frames, got {labels}"):
            choose_frames(50, labels, 0)


def test_one_empty_image_in_four_is_annotated(tmp_path):
    images = image_paths(load_data(draw_set(tmp_path, train=10)).train)
    for path in images[1:]:
        label_path(path).write_text("")
    assert [p.stem for p in annotated(images, 2)] == ["000", "004", "008"]


def test_a_subset_keeps_frames_together_and_reads_no_other_labels(tmp_path):
    dataset = load_data(tiles_of(tmp_path / "data", 6))
    chosen = choose_frames(6, 2, 1)
    for path in image_paths(dataset.train):
        if int(path.name[1:3]) not in chosen:
            label_path(path).write_text("no label")
    subset = write_subset(dataset, 2, 1, tmp_path / "subset")
    few = load_data(subset.data)
    labelled, unlabelled = image_paths(few.train), image_paths(subset.unlabelled)
    assert {int(p.name[1:3]) for p in labelled} == chosen
    assert len(labelled) == 4  # the empty tiles, of which there are two, are dropped
    assert {int(p.name[1:3]) for p in unlabelled} == set(range(6)) - chosen
    assert len(unlabelled) == 12  # with the empty ones
    assert (few.val, few.names, few.test) == (dataset.val, dataset.names, None)
    assert write_subset(dataset, 2, 1, tmp_path / "subset") == subset


def test_all_labels_leave_nothing_unlabelled_and_empty_frames_are_refused(tmp_path):
    dataset = load_data(draw_set(tmp_path / "data", train=4))
    everything = write_subset(dataset, 4, 0, tmp_path / "all")
    assert everything.unlabelled is None
    assert image_paths(load_data(everything.data).train) == image_paths(dataset.train)
    for path in image_paths(dataset.train):
        label_path(path).write_text("")
    with pytest.raises(DataError, match="subset 7: expected an object in 2 labelled frames"):
        write_subset(dataset, 2, 7, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
