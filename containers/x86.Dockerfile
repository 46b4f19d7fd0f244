# lgvit-edge camera for PCs and servers (x86-64), on ONNX Runtime. In a clone of the project:
#
#   docker build -f containers/x86.Dockerfile -t lgvit-edge-camera .
#
# docs/camera.md says how to run it. No container engine has built this file yet: its steps were
# run without one, by tools/container_steps.py.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY lgvit_edge lgvit_edge
COPY export export
COPY runtime runtime
COPY benchmarks benchmarks
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# GStreamer for the sources that are pipelines: OpenCV's wheels have none in them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
        gstreamer1.0-plugins-bad gstreamer1.0-libav \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /wheels/
COPY --from=wheel /wheels/ /wheels/
RUN python -m venv /opt/lgvit-edge \
    && /opt/lgvit-edge/bin/pip install --no-cache-dir -c /wheels/constraints.txt \
        "$(echo /wheels/lgvit_edge-*.whl)[cpu,camera]"

# Not root; "video" is who may open cameras.
RUN useradd --system --uid 10001 --groups video --home-dir /var/lib/lgvit-edge --create-home camera
USER camera
WORKDIR /var/lib/lgvit-edge
VOLUME /var/lib/lgvit-edge
ENV LGVIT_EDGE_CACHE=/var/lib/lgvit-edge/cache PYTHONUNBUFFERED=1

# The live page answers it: the configuration needs a line  page = "0.0.0.0:8765".
EXPOSE 8765
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/lgvit-edge/bin/python", "-c", "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8765, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/lgvit-edge/bin/lgvit-edge", "camera"]
CMD ["--config", "/etc/lgvit-edge/camera.toml"]
