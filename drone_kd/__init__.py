"""On-board part of drone_kd: a self-describing ONNX model, frames in, detections out."""
