"""On-board part of drone_kd: object detection with a model.onnx, in Python and as a ROS 2 node."""
