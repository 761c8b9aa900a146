# One image for the backend, the worker and the scheduler; the command selects the role.
# To pin the base image by digest: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

# Strips the locks' comments, which change more often than the versions, to keep the large layers below cached.
FROM ${BASE} AS locks
COPY requirements-torch.lock requirements.lock requirements-extras.lock /locks/
RUN sed -i '/^#/d' /locks/*.lock

FROM ${BASE}

# The index for PyTorch. The default has CPU builds, which the Python package index lacks, with the hashes stated
# by that index. docker-compose.gpu.yml leaves it empty: the CUDA build, with the locked hashes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Mirrors of the Python package index; pip reads these names.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Empty omits the extras, of which VERSIONS_URL needs s3 and gs.
ARG EXTRAS=yes

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --uid 10001 --create-home sspsam \
 && install -d -o sspsam -g sspsam /models /out

# Layers in order of change frequency: PyTorch, the other dependencies, our own code.
WORKDIR /src
COPY --from=locks /locks/requirements-torch.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$TORCH_INDEX" ]; then \
      pip install --no-deps --index-url "$TORCH_INDEX" torch==2.14.1 torchvision==0.29.1; \
    else \
      pip install --no-deps --require-hashes -r requirements-torch.lock; \
    fi
COPY --from=locks /locks/requirements.lock /locks/requirements-extras.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r requirements.lock ${EXTRAS:+-r requirements-extras.lock}

# Copied and removed in one layer, since a build leaves files next to the sources.
RUN --mount=type=bind,target=/context \
    cp -r /context /tmp/sources && pip install --no-deps --no-build-isolation /tmp/sources && rm -rf /tmp/sources

WORKDIR /home/sspsam
USER sspsam
# The root file system may be read-only: files are written only to /models, /out and /tmp.
ENV MODEL_DIR=/models HOST=0.0.0.0 XDG_CACHE_HOME=/tmp/cache MALLOC_ARENA_MAX=2
VOLUME /models
EXPOSE 9090
ENTRYPOINT ["sspsam"]
CMD ["serve"]
