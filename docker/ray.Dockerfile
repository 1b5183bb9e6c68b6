# Training: Ray, TensorFlow and the project. TensorFlow's wheels bring CUDA; the machine brings NVIDIA's driver.
#
#     make images REPOSITORY=... TAG=...
#
# BASE_IMAGE has Debian's apt and Python with venv, the same minor version as beam.Dockerfile's.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS requirements
ARG EXTRAS=beam,ray,s3,gpu,cluster
WORKDIR /parts
COPY docker/requirements.py pyproject.toml constraints.txt ./
RUN python3 requirements.py pyproject.toml "${EXTRAS}" > requirements.txt \
    && rm requirements.py pyproject.toml

FROM ${BASE_IMAGE} AS wheel
WORKDIR /project
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY masks masks
COPY trainer trainer
COPY pipelines pipelines
RUN python3 -m venv build \
    && PIP_CONSTRAINT=constraints.txt build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir wheels .

FROM ${BASE_IMAGE}
# bash, rsync and ssh: Ray's cluster launcher. wget: KubeRay's health checks.
# Debian keeps only the newest version of a package, so a pinned one is gone some day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash pconv
# Requirements and versions alone: as long as they stay, so do the gigabytes that come of them.
COPY --from=requirements /parts /parts
RUN python3 -m venv /opt/pconv \
    && /opt/pconv/bin/pip install --no-cache-dir --no-compile -c /parts/constraints.txt -r /parts/requirements.txt
# Copied, not mounted: buildah would take a layer with the wheel of an earlier build for this one.
COPY --from=wheel /project/wheels /parts/wheels
RUN /opt/pconv/bin/pip install --no-cache-dir --no-compile --no-deps /parts/wheels/*.whl
COPY docker/smoke.py /opt/pconv/smoke.py
# A login shell sets PATH anew, and `ray up` runs every command in one.
RUN echo "PATH=/opt/pconv/bin:\$PATH" > /etc/profile.d/pconv.sh
# The commit, for what is written to be told from that of others; last, so that it moves no layer above.
ARG PCONV_COMMIT=""

# LD_LIBRARY_PATH: where Google's machines (GKE, Dataflow) mount NVIDIA's driver.
# RAY_idle_worker_...: pipelines/engines/on_ray/cluster.py says why.
ENV PATH=/opt/pconv/bin:$PATH \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    PCONV_COMMIT=$PCONV_COMMIT \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_idle_worker_killing_time_threshold_ms=60000
USER 1000
WORKDIR /home/pconv
CMD ["python", "/opt/pconv/smoke.py"]
