"""The recipe of the default model, on tiny data."""

import json
from pathlib import Path
from string import Template

import cv2
import numpy as np
import pytest
import yaml

import drone_kd_training.recipes.default_model as module
from drone_kd.backends import open_backend
from drone_kd.paths import default_model_path
from drone_kd_training.data.dataset import load_data, read_sample
from drone_kd_training.export.export import ExportError
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.recipes.default_model import (
    PLAN,
    calibrate,
    choose_alpha,
    choose_threshold,
    save_start,
)
from drone_kd_training.recipes.default_model_data import KINDS, write_test_set
from drone_kd_training.recipes.model_card import table_by_test_set
from drone_kd_training.teachers.teaching_plan import Plan, Source
from tiny_training import save_checkpoint


@pytest.fixture(scope="module")
def committed() -> dict:
    text = PLAN.read_text(encoding="utf-8")
    return yaml.safe_load(Template(text).substitute(shared="S", work="W", thermal="T.pt"))


def test_committed_plan_teaches_every_class_and_keeps_the_test_sets_apart(committed):
    assert committed["names"] == ["person", "two-wheeler", "car", "truck", "bus"]
    assert "unicamp" not in PLAN.read_text(encoding="utf-8")
    assert "lewis" not in str(committed["sources"])
    taught = {s for t in committed["teachers"].values() for s in t["sources"]}
    labelled = {s for s, v in committed["sources"].items() if "data" in v or v.get("empty")}
    assert taught | labelled == set(committed["sources"])
    mapped = [v.get("classes", {}) for part in ("sources", "teachers")
              for v in committed[part].values()]  # fmt: skip
    assert {c for m in mapped for c in m.values() if c} <= set(committed["names"])


def test_kinds_are_person_two_wheeler_and_vehicle():
    assert set(KINDS.values()) == {"person", "two-wheeler", "vehicle"}


def test_start_has_coco_classes_under_our_names(tmp_path):
    coco = save_checkpoint(tmp_path / "coco.pt", names=("person", "motorcycle", "car"))
    model, _ = load_model(str(save_start(coco, tmp_path / "start.pt")))
    assert list(model.names.values()) == ["person", "two-wheeler", "car"]


def test_test_set_merges_classes_by_kind(tmp_path):
    folder = tmp_path / "data" / "set"
    for part in ("images/val", "labels/val"):
        (folder / part).mkdir(parents=True)
    cv2.imwrite(str(folder / "images/val/a.png"), np.zeros((50, 100, 3), np.uint8))
    (folder / "labels/val/a.txt").write_text("0 0.5 0.5 0.2 0.2\n2 0.2 0.2 0.1 0.1\n")
    names = {0: "van", 1: "person", 2: "bus"}
    content = {"train": "images/val", "val": "images/val", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    data = load_data(write_test_set(tmp_path, "set", tmp_path / "merged"))
    assert data.names == ("vehicle", "person")
    sample = read_sample(next(data.val.iterdir()), 2)
    assert sample.class_ids.tolist() == [0, 0]
    np.testing.assert_allclose(sample.xyxy[0], [40, 20, 60, 30], atol=0.01)


def test_calibration_moves_the_best_threshold_to_the_default(tiny_data, tmp_path, monkeypatch):
    """What is added to the logits moves each score that was at the threshold to 0.25."""
    data = load_data(tiny_data)
    images = tuple(sorted(data.train.iterdir()))
    plan = Plan(
        ("car", "person"),
        tuple(
            Source(name, images, (), data.names, {n: n for n in data.names}, ("car", "person"))
            for name in ("hit-uav", "aerial-cars")
        ),
        (),
        tmp_path,
    )
    checkpoint = save_checkpoint(tmp_path / "best.pt")
    result = {"threshold": 0.4, "f1": 0.5, "f1_by_class": {}}
    monkeypatch.setattr(module, "choose_threshold", lambda *_: result)
    moved, chosen = calibrate(checkpoint, plan, tmp_path)
    assert chosen == result and json.loads((tmp_path / "threshold.json").read_text()) == result
    before, after = (load_model(str(p))[0].model[-1].cv3[0][-1].bias for p in (checkpoint, moved))
    sigmoid = 1 / (1 + np.exp(-(np.log(0.4 / 0.6) + float((after - before)[0].detach()))))
    assert sigmoid == pytest.approx(0.25, abs=1e-3)


def test_threshold_has_the_best_f1(tiny_data, tmp_path, monkeypatch):
    class Perfect:
        """Finds every car at 0.6, every person at 0.45, and a car of nothing at 0.3."""

        name, fallback = "perfect", ""

        def __init__(self, spec, samples):
            self.spec, self.samples, self.turn = spec, samples, 0

        def infer(self, batch):
            sample = self.samples[self.turn % len(self.samples)]
            self.turn += 1
            rows = [[*b, 0.6 if c == 0 else 0.45, c]
                    for b, c in zip(sample.xyxy, sample.class_ids, strict=True)]  # fmt: skip
            rows.append([0, 0, 4, 4, 0.3, 0])
            return np.array([rows], np.float32)

    data = load_data(tiny_data)
    samples = [read_sample(p, 2) for p in sorted(data.train.iterdir())] * 2
    model = TorchBackend(load_model(str(save_checkpoint(tmp_path / "m.pt")))[0], 64)
    images = tuple(s.path for s in samples[:12])
    sources = tuple(
        Source(n, images, (), data.names, {c: c for c in data.names}, ("car", "person"))
        for n in ("hit-uav", "aerial-cars")
    )
    plan = Plan(("car", "person"), sources, (), tmp_path)
    monkeypatch.setattr(module, "LABELS_NEEDED", 5)
    found = choose_threshold(Perfect(model.spec, samples), plan)
    assert 0.3 < found["threshold"] <= 0.45 and found["f1"] == 1.0


def test_table_has_the_mean_over_test_sets():
    figures = {"m": {"a": {"map50": 0.2, "map50_95": 0.1}, "b": {"map50": 0.6, "map50_95": 0.3}}}
    assert "| m | 3.1 M | 20.0 (10.0) | 60.0 (30.0) | 40.0 (20.0) |" in table_by_test_set(
        figures, {"m": 3_100_000}
    )


def test_card_of_the_packaged_model_names_its_sources_and_licence():
    card = default_model_path().with_name("README.md")
    text = " ".join(card.read_text(encoding="utf-8").split())
    for name in ("Kharuzhy", "HIT-UAV", "Zaborowski", "CC BY-SA", "DroneTM"):
        assert name in text and name in module.ATTRIBUTION
    assert open_backend(card.with_name("default.onnx")).spec.licence == module.LICENCE


@pytest.mark.slow
def test_alpha_with_the_best_mean_is_chosen(tmp_path, monkeypatch):
    best = {"a": 0.3, "b": 0.15}  # a's counts for more

    def measure(path, data, folder, classes):
        assert path.is_file()
        distance = abs(float(path.stem) - best[data.name])
        return {"map50": 1 - distance * (2 if data.name == "a" else 1), "map50_95": 0.0}

    monkeypatch.setattr(module, "measure", measure)
    start_file, trained = (save_checkpoint(tmp_path / f"{n}.pt") for n in ("start", "trained"))
    test_sets = {"a": Path("a"), "b": Path("b")}
    alpha, path, found = choose_alpha(trained, start_file, test_sets, tmp_path)
    assert alpha == 0.3 and path.stem == "0.3" and set(found) == {str(s) for s in module.ALPHAS}


def test_export_gate_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ExportError("not written: mAP50-95 lost, points: 0.104, at most 0.1")

    monkeypatch.setattr(module, "build", refuse)
    assert module.main(["--shared", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: not written: mAP50-95 lost, points: 0.104, at most 0.1"
    ]
