# docker build -t fedsim .            the simulator on the processor
# docker run --rm -v "$PWD/runs:/home/fedsim/runs" fedsim run quickstart
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fedsim fedsim
COPY clients clients
COPY server server
COPY adversaries adversaries
COPY experiments experiments
# torch's ordinary wheel brings its CUDA libraries along; --build-arg TORCH_ARGS="--index-url ..." takes another build.
ARG TORCH_ARGS=""
RUN pip install --no-cache-dir $TORCH_ARGS torch torchvision \
    && pip install --no-cache-dir .

RUN useradd --create-home fedsim
USER fedsim
WORKDIR /home/fedsim
ENTRYPOINT ["fedsim"]
CMD ["--help"]
