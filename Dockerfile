# One image for the backend, the worker and the schedule; the command says which.
# To pin the base image to its bytes as well: --build-arg BASE=python:3.11.14-slim-bookworm@sha256:...
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}

# The index that PyTorch comes from. The default has CPU builds, which the Python package index has not, so
# that their hashes are those that the index states; docker-compose.gpu.yml leaves it empty: hashes as locked.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --uid 10001 --create-home sspsam \
 && install -d -o sspsam -g sspsam /models

# The layers by how rarely they change: PyTorch, the other dependencies, our own code.
WORKDIR /src
COPY requirements.lock requirements-torch.lock ./
RUN if [ "$TORCH_INDEX" ]; then \
      pip install --no-deps --index-url "$TORCH_INDEX" torch==2.14.1 torchvision==0.29.1; \
    else \
      pip install --no-deps --require-hashes -r requirements-torch.lock; \
    fi
RUN pip install --no-deps --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY sspsam sspsam
COPY finetune finetune
COPY backend backend
COPY worker worker
RUN pip install --no-deps --no-build-isolation .

WORKDIR /home/sspsam
USER sspsam
# The root file system may be read-only: what is written goes to /models and /tmp.
ENV MODEL_DIR=/models HOST=0.0.0.0 XDG_CACHE_HOME=/tmp/cache MALLOC_ARENA_MAX=2
VOLUME /models
EXPOSE 9090
ENTRYPOINT ["sspsam"]
CMD ["serve"]
