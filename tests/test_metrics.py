import numpy as np
import pytest

from drone_kd.metrics import annotation, mean_precision, precision

pytest.importorskip("pycocotools", reason="needs pycocotools: pip install drone_kd[simulation]")


def test_perfect_boxes_have_ap_1_for_each_size_and_a_miss_lowers_it():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 80, 80], [100, 100, 200, 200]], dtype=np.float32)
    ground_truth = [annotation(i + 1, 0, box, 0) for i, box in enumerate(boxes)]
    predictions = [{**a, "score": 0.9} for a in ground_truth]
    scores = precision([{"id": 0}], ground_truth, predictions, [0])
    assert [mean_precision(scores[k]) for k in ("all", "tiny", "small", "medium", "large")] == [
        1,
        1,
        1,
        None,
        1,
    ]
    missed = precision([{"id": 0}], ground_truth, predictions[1:], [0])
    assert mean_precision(missed["tiny"]) == 0 and mean_precision(missed["large"]) == 1
    ap = mean_precision(missed["all"])
    assert ap is not None and ap < 0.7
