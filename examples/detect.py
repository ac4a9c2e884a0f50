"""Detect objects in an image: python examples/detect.py photo.jpg."""

import sys

import cv2

from drone_kd.detector import load_detector

detector = load_detector()  # the default model; else load_detector("model.onnx", confidence=0.4)
image = cv2.imread(sys.argv[1])  # uint8 (height, width, 3), BGR
if image is None:
    sys.exit(f"expected an image, got {sys.argv[1]}")
found = detector(image)  # best first, boxes in pixels of the image
for box, score, class_id in zip(found.xyxy, found.scores, found.class_ids, strict=True):
    print(detector.backend.spec.classes[class_id], f"{score:.2f}", box.round().astype(int))
