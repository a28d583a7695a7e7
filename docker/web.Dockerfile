# The web: Django under an ASGI server. No torch in it, by the lock it installs.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
WORKDIR /srv/stillroom
COPY requirements/web.lock requirements/
RUN pip install -r requirements/web.lock
COPY . .
RUN useradd --system --create-home stillroom && mkdir -p state && chown stillroom state
USER stillroom
EXPOSE 8000
CMD ["uvicorn", "webapp.asgi:application", "--host", "0.0.0.0", "--port", "8000"]
