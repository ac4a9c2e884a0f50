"""Read what a model file says about itself: python examples/read_model.py model.onnx."""

import sys
from pathlib import Path

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.core.model_spec import ModelError
from drone_kd.lineage import family_tree

if len(sys.argv) != 2:
    sys.exit(__doc__)
path = Path(sys.argv[1])
try:
    spec = read_spec(path)
except ModelError as error:  # no such file, or one that does not describe itself
    sys.exit(f"expected a model file of drone-kd export, got {error}")
print("classes:  ", ", ".join(spec.classes))
print("input:    ", f"{spec.dtype} {spec.layout} {spec.input_shape}, {spec.colour}")
print("precision:", spec.precision)
for name, gate in spec.gates.items():
    outcome = "holds" if gate["measured"] <= gate["limit"] else "fails"
    if gate.get("missing"):  # objects that the decision would need
        outcome = "not enough data"
    print("gate:     ", f"{name} {gate['measured']:g}, at most {gate['limit']:g}: {outcome}")
print("licence:  ", spec.licence)
print("lineage:  ", family_tree(path))
