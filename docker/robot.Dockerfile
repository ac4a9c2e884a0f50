# Detector node: docker build -f docker/robot.Dockerfile -t drone_kd .
# BASE: an image with ROS 2 in /opt/ros, colcon and rosdep. For TensorRT: one with JetPack's, too.
# Without ROS in it, the image holds the commands of drone-kd only, such as `build` and `selftest`.
ARG BASE=ros:jazzy
# hadolint ignore=DL3006
FROM ${BASE}

# tensorrt leaves ONNX Runtime out.
ARG RUNTIME=onnxruntime
COPY . /tmp/src/drone_kd
RUN sh /tmp/src/drone_kd/docker/install-robot.sh "${RUNTIME}" && rm -rf /tmp/src

ENV PATH=/opt/drone_kd/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 HOME=/home/drone
USER 1000:1000
WORKDIR /home/drone
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s \
  CMD ["/opt/drone_kd/entrypoint.sh", "python3", "/opt/drone_kd/health.py"]
ENTRYPOINT ["/opt/drone_kd/entrypoint.sh"]
CMD ["ros2", "launch", "drone_kd", "fly.launch.py"]
