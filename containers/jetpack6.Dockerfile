# lgvit-edge camera for Jetsons with JetPack 6.1 and 6.2, on TensorRT. On the board, in a clone:
#
#   sudo docker build -f containers/jetpack6.Dockerfile -t lgvit-edge-camera .
#
# docs/camera.md says how to run it. No container engine has built this file yet, and no Jetson has
# run it.
#
# NVIDIA describes the image, with what is in it, at
# https://catalog.ngc.nvidia.com/orgs/nvidia/containers/l4t-jetpack: CUDA, cuDNN, TensorRT and the
# multimedia libraries; r36.4.0 is JetPack 6.1, whose CUDA 12.6 and TensorRT 10.3 are those of 6.2
# too. Engines run on the TensorRT that compiled them. For JetPack 6.0, with TensorRT 8.6:
# --build-arg L4T=r36.3.0
ARG L4T=r36.4.0

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lgvit_edge lgvit_edge
COPY export export
COPY runtime runtime
COPY benchmarks benchmarks
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/l4t-jetpack:${L4T}
# GStreamer reads CSI cameras. TensorRT for Python is installed only where the image lacks it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        python3-venv gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
        gstreamer1.0-plugins-bad gstreamer1.0-libav \
    && { test -d /usr/lib/python3.10/dist-packages/tensorrt \
        || apt-get install --yes --no-install-recommends python3-libnvinfer; } \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels/ /wheels/
# Ubuntu's OpenCV (4.5) is older than what lgvit-edge needs, so OpenCV comes with the extra.
# cuda-python 13 wants a newer driver than that of JetPack 6.
RUN python3 -m venv --system-site-packages /opt/lgvit-edge \
    && /opt/lgvit-edge/bin/pip install --no-cache-dir \
        "$(echo /wheels/lgvit_edge-*.whl)[camera]" "cuda-python<13"

# Not root; "video" is who may open cameras and the GPU.
RUN useradd --system --uid 10001 --groups video --home-dir /var/lib/lgvit-edge --create-home camera
USER camera
WORKDIR /var/lib/lgvit-edge
VOLUME /var/lib/lgvit-edge
ENV LGVIT_EDGE_CACHE=/var/lib/lgvit-edge/cache PYTHONUNBUFFERED=1

# The live page answers it: the configuration needs a line  page = "0.0.0.0:8765".
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["/opt/lgvit-edge/bin/python", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8765, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/lgvit-edge/bin/lgvit-edge", "camera"]
CMD ["--config", "/etc/lgvit-edge/camera.toml"]
