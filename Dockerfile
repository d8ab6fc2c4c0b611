# docker build -t fedsim .            the simulator on the processor
# docker run --rm -v "$PWD/runs:/work/runs" fedsim run quickstart
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fedsim fedsim
COPY clients clients
COPY server server
COPY adversaries adversaries
COPY experiments experiments
# torch's ordinary wheel brings its CUDA libraries along. The CPU build is a third of the size; pass
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu for it.
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir .

RUN useradd --create-home fedsim && mkdir /work && chown fedsim /work
USER fedsim
WORKDIR /work
ENTRYPOINT ["fedsim"]
CMD ["--help"]
