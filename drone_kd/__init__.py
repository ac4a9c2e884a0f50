"""On-board part of drone_kd: object detection with a model.onnx, in Python and as a ROS 2 node."""

import os

# Both are read when OpenCV is first imported. A second limit for encoded images, should a decoder
# find another size in a file than `media.compressed_images` does.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "256000000")
# Damaged images are reported in one line, by the caller.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# ONNX Runtime (1.32 and later) otherwise stores an identifier of the machine and reports its
# use (Privacy.md of its package). It reads this when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
