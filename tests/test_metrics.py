import numpy as np
import pytest

from drone_kd.metrics import annotation, mean_precision, precision

pytest.importorskip(
    "pycocotools", reason="pycocotools is not here: pip install drone_kd[simulation]"
)


def test_perfect_boxes_score_one_by_size_and_a_miss_costs():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 80, 80], [100, 100, 200, 200]], dtype=np.float32)
    truth = [annotation(i + 1, 0, box, 0) for i, box in enumerate(boxes)]
    found = [{**a, "score": 0.9} for a in truth]
    scores = precision([{"id": 0}], truth, found, [0])
    assert [mean_precision(scores[k]) for k in ("all", "tiny", "small", "medium", "large")] == [
        1,
        1,
        1,
        None,
        1,
    ]
    missed = precision([{"id": 0}], truth, found[1:], [0])
    assert mean_precision(missed["tiny"]) == 0 and mean_precision(missed["large"]) == 1
    assert mean_precision(missed["all"]) < 0.7
