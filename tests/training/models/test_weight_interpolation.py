import numpy as np
import pytest
import torch

from drone_kd_training.models.checkpoints import class_names, load_model
from drone_kd_training.models.weight_interpolation import interpolate_weights
from tiny_training import save_checkpoint


@pytest.mark.slow
def test_weights_and_statistics_are_interpolated_by_class_name(tmp_path):
    start = save_checkpoint(tmp_path / "start.pt", names=("person", "dog", "car"))
    trained = save_checkpoint(tmp_path / "trained.pt", names=("car", "person"))
    checkpoint = torch.load(trained, weights_only=False)
    with torch.no_grad():
        for value in checkpoint["model"].state_dict().values():
            if value.is_floating_point():
                value.add_(torch.ones_like(value))
    torch.save(checkpoint, trained)
    mixed = tmp_path / "new" / "mixed.pt"
    interpolate_weights(trained, start, 0.3, mixed)
    assert class_names(load_model(str(mixed))[0]) == ("car", "person")
    old, new, found = (load_model(str(p))[0].state_dict() for p in (start, trained, mixed))
    for name, value in found.items():
        before = old[name] if old[name].shape == value.shape else old[name][[2, 0]]
        if value.is_floating_point():
            wanted = 0.7 * new[name] + 0.3 * before
            np.testing.assert_allclose(value, wanted, atol=1e-5, err_msg=name)
