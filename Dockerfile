# docker build --tag task-service .
# docker run --rm --env DATABASE_URL=… --env AUTH_DISABLED=true task-service alembic upgrade head
# docker run --init --stop-timeout 45 --env DATABASE_URL=… --env AUTH_DISABLED=true --publish 8000:8000 task-service
#
# The container does not migrate the database: migrate before you start a new version.
# --init: Linux ignores signals that process 1 has no handler for, so a stop during the first second would be lost.
# With it, a container stopped before that exits with status 143, and later with 0.
# --stop-timeout: requests in flight may take 42 seconds; by default, Docker kills the container after 10.
# WEB_CONCURRENCY is the number of workers, each with DB_POOL_SIZE connections; UVICORN_… sets uvicorn's other options.
# With several workers, uvicorn exits with status 0 even if an invalid setting ended the workers; the line is in the log.
# FASTAPI_OTEL_AUTO_CONFIGURE=true and OTEL_EXPORTER_OTLP_ENDPOINT enable traces and metrics. If the collector is
# unreachable, the container needs up to three times OTEL_EXPORTER_OTLP_TIMEOUT seconds more to stop.

FROM python:3.13.16-slim-trixie AS packages
COPY requirements/base.txt /
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement /base.txt \
    && /venv/bin/pip uninstall --quiet --yes pip

FROM python:3.13.16-slim-trixie
COPY --from=packages /venv /venv
WORKDIR /app
COPY alembic.ini ./
COPY backend backend
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ENVIRONMENT=production \
    UVICORN_HOST=0.0.0.0 \
    UVICORN_PORT=8000 \
    UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=42 \
    UVICORN_LOG_CONFIG=backend/log_config.json \
    OTEL_SERVICE_NAME=task-service \
    OTEL_EXPORTER_OTLP_TIMEOUT=2
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"UVICORN_PORT\"]}/health/live', timeout=4)"]
CMD ["uvicorn", "backend.main:app"]
