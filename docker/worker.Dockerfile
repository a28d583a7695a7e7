# The worker: the web's packages for the bridge, and torch for the job's process, which it starts as a child.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 OMP_WAIT_POLICY=PASSIVE
WORKDIR /srv/stillroom
COPY requirements/web.lock requirements/engine.lock requirements/
# For a host without a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the small CPU build.
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements/web.lock -r requirements/engine.lock
COPY . .
# One user id in both images: they share the volume of run folders and artifacts.
RUN useradd --uid 10001 --create-home stillroom && mkdir -p state && chown stillroom state
USER stillroom
CMD ["python", "manage.py", "worker"]
