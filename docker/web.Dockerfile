# The web: Django under an ASGI server. No torch in it, by the lock it installs.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    STILLROOM_STATIC=/srv/stillroom/static-collected
WORKDIR /srv/stillroom
COPY requirements/web.lock requirements/
RUN pip install -r requirements/web.lock
COPY . .
RUN STILLROOM_STATE=/tmp/build python manage.py collectstatic --no-input && rm -r /tmp/build
# One user id in both images: they share the volume of run folders and artifacts.
RUN useradd --uid 10001 --create-home stillroom && mkdir -p state && chown stillroom state
USER stillroom
EXPOSE 8000
CMD ["uvicorn", "webapp.asgi:application", "--host", "0.0.0.0", "--port", "8000"]
