import numpy as np

from drone_kd_training.export.parity import compare
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from tiny_training import SIZE


def test_score_difference_is_measured(square_detector):
    model, _ = load_model(str(square_detector))
    first, second = TorchBackend(model, SIZE), TorchBackend(model, SIZE)
    second.graph.model.model[-1].cv3[0][-1].bias.add_(0.5)
    frames = [np.full((SIZE, SIZE, 3), 110, np.uint8)]
    assert compare(first, first, frames).score.max() == 0
    assert compare(first, second, frames).score.max() > 0.01
