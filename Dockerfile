# One image for the backend, the worker and the schedule; the command says which.
FROM python:3.11-slim-bookworm

# The index that PyTorch comes from. The default has CPU builds; docker-compose.gpu.yml leaves it empty.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

RUN useradd --uid 10001 --create-home sspsam \
 && install -d -o sspsam -g sspsam /models

# The layers by how rarely they change: PyTorch, the other dependencies, our own code.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.6" "torchvision>=0.21"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN mkdir sspsam finetune backend worker \
 && touch sspsam/__init__.py finetune/__init__.py backend/__init__.py worker/__init__.py \
 && pip install . \
 && pip uninstall --yes ssp-sam-assist

COPY sspsam sspsam
COPY finetune finetune
COPY backend backend
COPY worker worker
RUN pip install --no-deps .

WORKDIR /home/sspsam
USER sspsam
ENV MODEL_DIR=/models HOST=0.0.0.0
VOLUME /models
EXPOSE 9090
ENTRYPOINT ["sspsam"]
CMD ["serve"]
