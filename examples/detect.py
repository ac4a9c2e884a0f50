"""Detect objects in an image: python examples/detect.py photo.jpg."""

import sys

from drone_kd.detector import load_detector
from drone_kd.media.image_files import SourceError, read_image

if len(sys.argv) != 2:
    sys.exit(__doc__)
detector = load_detector()  # the default model; else load_detector("model.onnx", confidence=0.4)
try:
    image = read_image(sys.argv[1])  # uint8 (height, width, 3), BGR
except SourceError as error:
    sys.exit(f"expected an image, got {error}")
found = detector(image)  # best first, boxes in pixels of the image
for box, score, class_id in zip(found.xyxy, found.scores, found.class_ids, strict=True):
    print(detector.backend.spec.classes[class_id], f"{score:.2f}", box.round().astype(int))
