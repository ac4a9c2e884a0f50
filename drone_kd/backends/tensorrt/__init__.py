"""TensorRT backend: build an engine on the device, cache it, run it."""
