# docker build --tag task-service .
# docker run --rm --env DATABASE_URL=… --env AUTH_DISABLED=true task-service alembic upgrade head
# docker run --rm --env DATABASE_URL=… --env AUTH_DISABLED=true --publish 8000:8000 task-service
#
# Migrating is a step of its own, before new containers start: the service never changes the schema by itself here.
# WEB_CONCURRENCY is the number of workers, each with DB_POOL_SIZE connections; UVICORN_… sets uvicorn's other options.
# FASTAPI_OTEL_AUTO_CONFIGURE=true and OTEL_EXPORTER_OTLP_ENDPOINT switch traces on; a collector that is away holds up the
# end of the container by OTEL_EXPORTER_OTLP_TIMEOUT seconds, at the most twice.
#
# .ci/lint reads this file and .ci/container takes its steps by hand; the image itself has not been built yet.

FROM python:3.13.16-slim-trixie AS packages
COPY requirements/base.txt /
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement /base.txt

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
    UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=37 \
    UVICORN_LOG_CONFIG=backend/log_config.json \
    OTEL_SERVICE_NAME=task-service \
    OTEL_EXPORTER_OTLP_TIMEOUT=2
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"UVICORN_PORT\"]}/health/live', timeout=4)"]
CMD ["uvicorn", "backend.main:app"]
