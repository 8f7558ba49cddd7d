# GPU image:  docker build -t deit-detr . && docker run --gpus all --shm-size 8g -it -v /path/to/data:/deit-detr/data deit-detr
FROM python:3.12-slim-bookworm
# gcc and libc6-dev: Triton builds the launcher of each of its kernels with a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc git libc6-dev libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /deit-detr
COPY . .
# torch from PyPI brings its own CUDA libraries; the host only needs the NVIDIA driver and container toolkit.
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN bash tools/setup_env.sh
CMD ["bash"]
