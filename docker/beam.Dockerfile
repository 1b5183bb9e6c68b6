# Workers of the Beam jobs, on Dataflow and Flink: Beam's boot program starts them.
#
#     make images REPOSITORY=... TAG=...
#
# BASE_IMAGE has Debian's apt and Python with venv, the same minor version as ray.Dockerfile's.
# EXTRAS=dataflow,s3,gpu adds CUDA, for inference on GPUs.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG BEAM_SDK_IMAGE=apache/beam_python3.11_sdk:2.77.0

FROM ${BEAM_SDK_IMAGE} AS sdk

FROM ${BASE_IMAGE} AS requirements
ARG EXTRAS=dataflow,s3
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
RUN useradd --create-home --uid 1000 --shell /bin/bash pconv
# Requirements and versions alone: as long as they stay, so do the gigabytes that come of them.
COPY --from=requirements /parts /parts
RUN python3 -m venv /opt/pconv \
    && /opt/pconv/bin/pip install --no-cache-dir --no-compile -c /parts/constraints.txt -r /parts/requirements.txt
# Copied, not mounted: buildah would take a layer with the wheel of an earlier build for this one.
COPY --from=wheel /project/wheels /parts/wheels
RUN /opt/pconv/bin/pip install --no-cache-dir --no-compile --no-deps /parts/wheels/*.whl
COPY docker/smoke.py /opt/pconv/smoke.py

COPY --from=sdk /opt/apache/beam/boot /opt/apache/beam/boot
COPY docker/beam-entrypoint.sh /opt/pconv/beam-entrypoint.sh
# A login shell sets PATH anew, and `ray up` runs every command in one.
RUN echo "PATH=/opt/pconv/bin:\$PATH" > /etc/profile.d/pconv.sh
# The commit, for what is written to be told from that of others; last, so that it moves no layer above.
ARG PCONV_COMMIT=""

# LD_LIBRARY_PATH: where Google's machines (GKE, Dataflow) mount NVIDIA's driver.
ENV PATH=/opt/pconv/bin:$PATH \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    PCONV_COMMIT=$PCONV_COMMIT \
    PYTHONUNBUFFERED=1 \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
WORKDIR /home/pconv
# Starts as root, and runs all else as user 1000.
ENTRYPOINT ["/opt/pconv/beam-entrypoint.sh"]
