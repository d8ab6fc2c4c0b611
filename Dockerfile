# One image for every part of a federation: the simulator on one machine, and the head and the workers of a Ray cluster.
#
#   docker build -t fedsim:cpu .                                  processor alone
#   docker build -t fedsim:cuda --build-arg TORCH=cuda .          NVIDIA GPUs
#   docker run --rm -v "$PWD/runs:/home/fedsim/runs" fedsim:cpu run quickstart
#   docker run --rm --gpus all -v "$PWD/runs:/home/fedsim/runs" -v "$PWD/data:/data" fedsim:cuda run cifar10
#
# All nodes of a cluster, and the machine that drives it, need the same Python to the last digit, the same Ray and the
# same fedsim: run all of them from one image, and the driver too.
ARG PYTHON=3.12.12
FROM python:${PYTHON}-slim-bookworm

# cpu | cuda | one of PyTorch's own builds, such as cu126. "cuda" is what PyPI has for Linux.
ARG TORCH=cpu
# Where wheels come from; pip reads the first by itself. Put a mirror here, never a password: arguments stay in the image.
ARG PIP_INDEX_URL=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl
# Who owns what is written into a mounted folder: --build-arg UID=$(id -u).
ARG UID=1000

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# g++ compiles long attacks; wget is what Kubernetes' probes of a Ray node call.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*

# From here to the source: layers that change only with pyproject.toml.
RUN case "$TORCH" in \
      cuda) pip install torch torchvision ;; \
      cpu|cu[0-9]*) pip install --index-url "$TORCH_INDEX/$TORCH" torch torchvision ;; \
      *) echo "TORCH is cpu, cuda, or a build of PyTorch's such as cu126; not '$TORCH'" >&2; exit 2 ;; \
    esac
WORKDIR /src
COPY pyproject.toml ./
# What fedsim and its Ray part ask for, and Ray's own dashboard, which Kubernetes' probes and `ray job submit` speak to.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['ray'], 'ray[default]', sep='\n')" > /tmp/requirements.txt \
    && pip install -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY README.md LICENSE ./
COPY fedsim fedsim
COPY clients clients
COPY server server
COPY adversaries adversaries
COPY experiments experiments
RUN pip install --no-deps . && pip check && ray --version && fedsim --version

RUN useradd --create-home --uid "$UID" fedsim \
    && mkdir --parents /data/torch /home/fedsim/runs \
    && chown --recursive fedsim:fedsim /data /home/fedsim
# Data sets and weights are no part of the image: mount them here, on every node alike.
ENV FEDSIM_DATA=/data TORCH_HOME=/data/torch RAY_USAGE_STATS_ENABLED=0
USER fedsim
WORKDIR /home/fedsim
ENTRYPOINT ["fedsim"]
CMD ["--help"]
