"""The packaged students: sizes, levels, and weights that a released checkpoint can start."""

import pytest
import yaml
from ultralytics.nn.tasks import DetectionModel

from drone_kd_training.models.checkpoints import PACKAGED_MODELS, resolve_model

FAMILY = {"micro": 0.3, "nano": 1.0, "small": 3.4}
# Stem, stages and downsampling up to stride 16.
BACKBONE = range(7)


def build(name):
    return DetectionModel(resolve_model(name), nc=2, verbose=False)


@pytest.mark.parametrize("name", FAMILY)
def test_sizes_and_levels(name):
    plain, with_p2 = build(f"aerial-{name}.yaml"), build(f"aerial-{name}-p2.yaml")
    assert plain.stride.tolist() == [8, 16] and with_p2.stride.tolist() == [4, 8, 16]
    for model in (plain, with_p2):
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert millions == pytest.approx(FAMILY[name], rel=0.25)


@pytest.mark.parametrize("suffix", ["", "-p2"])
@pytest.mark.parametrize(
    ("name", "released"), [("nano", "yolov8n.yaml"), ("small", "yolov8s.yaml")]
)
def test_a_released_checkpoint_starts_the_whole_backbone(name, suffix, released):
    theirs = {k: v.shape for k, v in build(released).state_dict().items()}
    own = build(f"aerial-{name}{suffix}.yaml").state_dict()
    backbone = {k: v.shape for k, v in own.items() if int(k.split(".")[1]) in BACKBONE}
    assert len(backbone) > 100
    assert backbone == {k: theirs.get(k) for k in backbone}


def test_members_of_the_family_differ_in_width_and_levels_only():
    for suffix in ("", "-p2"):
        contents = []
        for name in FAMILY:
            content = yaml.safe_load((PACKAGED_MODELS / f"aerial-{name}{suffix}.yaml").read_text())
            del content["width_multiple"]
            contents.append(content)
        assert contents[0] == contents[1] == contents[2]
