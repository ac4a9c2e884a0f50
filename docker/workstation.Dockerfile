# Training, export and tests: docker build -f docker/workstation.Dockerfile -t drone_kd-training .
# `--target tools` stops before the 3 GB of `make setup`; the dev container starts from there.
ARG BASE=python:3.12-slim
# hadolint ignore=DL3006
FROM ${BASE} AS tools
# python3-dev: for a base image whose Python is Debian's.
# hadolint ignore=DL3008
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      build-essential git make python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --uid 1000 --create-home drone
USER 1000:1000
WORKDIR /home/drone/drone_kd

FROM tools
COPY --chown=drone . .
RUN make setup && rm -rf ~/.cache
HEALTHCHECK --interval=60s --timeout=30s CMD [".venv/bin/drone-kd", "--version"]
CMD ["bash"]
