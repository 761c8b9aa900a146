# One image for the backend, the worker and the schedule; the command decides which.
# To pin the base image to its bytes as well: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

# The locks without comments, which change more often than what is locked: large layers below stay in the cache.
FROM ${BASE} AS locks
COPY requirements-torch.lock requirements.lock requirements-extras.lock /locks/
RUN sed -i '/^#/d' /locks/*.lock

FROM ${BASE}

# The index that PyTorch comes from. The default has CPU builds, which the Python package index has not; their
# hashes are those that the index states. docker-compose.gpu.yml leaves it empty: the CUDA build, hashes as locked.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Mirrors of the Python package index; pip reads these names.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Empty leaves the extras out, of which VERSIONS_URL needs s3 and gs.
ARG EXTRAS=yes

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --uid 10001 --create-home sspsam \
 && install -d -o sspsam -g sspsam /models /out

# The layers by how rarely they change: PyTorch, the other dependencies, our own code.
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

# Copied and removed in one layer, as a build leaves files beside the sources.
RUN --mount=type=bind,target=/context \
    cp -r /context /tmp/sources && pip install --no-deps --no-build-isolation /tmp/sources && rm -rf /tmp/sources

WORKDIR /home/sspsam
USER sspsam
# The root file system may be read-only: what is written goes to /models, /out and /tmp.
ENV MODEL_DIR=/models HOST=0.0.0.0 XDG_CACHE_HOME=/tmp/cache MALLOC_ARENA_MAX=2
VOLUME /models
EXPOSE 9090
ENTRYPOINT ["sspsam"]
CMD ["serve"]
