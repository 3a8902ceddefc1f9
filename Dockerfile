# syntax=docker/dockerfile:1
# qwen-serve in a container, for CPUs (the default) and for CUDA. See docs/deployment.md.
#
#   docker build -t qwen-serve .
#   docker build -t qwen-serve:cuda --target cuda .
#
# deploy/rehearse.py carries these steps out without Docker.

# What the tests run on; the tag moves with Debian's security updates.
ARG PYTHON=3.11-slim-bookworm

# The wheel. Its kernels are compiled for every instruction set and chosen where they run, so that
# the machine that builds need not be like the machine that serves.
FROM python:${PYTHON} AS wheel
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends g++
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY engine engine
COPY protocol protocol
COPY server server
COPY loadtest loadtest
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Where kernels do not compile, a wheel is built without them; an image must have them.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels . \
 && python -m zipfile --list /wheels/*.whl | grep engine/kernels/_generic

# All that both images have, but for Python packages.
FROM python:${PYTHON} AS base
LABEL org.opencontainers.image.title="qwen-serve" \
      org.opencontainers.image.description="An OpenAI-compatible inference server for the Qwen family" \
      org.opencontainers.image.licenses="Apache-2.0"
# libgomp1: the kernels' threads. tini: process 1, which waits for processes that lost their parent:
# those of an engine that was killed would stay as zombies.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends libgomp1 tini
# A number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin qwen-serve \
 && install -d -o qwen-serve -g qwen-serve -m 0750 /data
ENV QWEN_SERVE_DATA_DIR=/data \
    QWEN_SERVE_HOST=0.0.0.0 \
    QWEN_SERVE_PORT=8000
# Models that were downloaded. The root file system can be read-only; beside /data, /tmp is written.
VOLUME /data
WORKDIR /data
EXPOSE 8000
# Unready while a model is downloaded and loaded, and while the server drains.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"QWEN_SERVE_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["tini", "--", "qwen-serve"]
CMD ["serve"]

# PyTorch's own wheels bring CUDA's libraries; the driver comes from the host by the NVIDIA
# Container Toolkit. A base image with CUDA would hold the same libraries a second time.
FROM base AS cuda
ARG TORCH="torch==2.13.0"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# TORCH can be several words, as in the Makefile: TORCH="torch==2.13.0 --index-url URL". What PyTorch
# brings for building and testing programs in C++ is left out: 195 MB.
# hadolint ignore=SC2086,DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore ${TORCH} \
 && torch=$(python -c "import importlib.util as u; print(*u.find_spec('torch').submodule_search_locations)") \
 && rm -rf "${torch}/include" "${torch}/test" \
 && find "${torch}/bin" -type f ! -name torch_shm_manager -delete
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --root-user-action=ignore /wheels/*.whl
ENV HOME=/data
USER 10001:10001

# The last stage is what `docker build .` makes.
FROM base AS cpu
ARG TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# hadolint ignore=SC2086,DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --root-user-action=ignore ${TORCH} \
 && torch=$(python -c "import importlib.util as u; print(*u.find_spec('torch').submodule_search_locations)") \
 && rm -rf "${torch}/include" "${torch}/test" \
 && find "${torch}/bin" -type f ! -name torch_shm_manager -delete
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --root-user-action=ignore /wheels/*.whl
ENV HOME=/data
USER 10001:10001
