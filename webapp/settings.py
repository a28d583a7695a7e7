"""Settings, read from the environment once. What is not set suits one machine without services.

STILLROOM_STATE       folder of the database, prompt sets, artifacts and run folders
STILLROOM_SECRET_KEY  signing key; made once in the state folder where not set
STILLROOM_OLD_SECRET_KEYS  former ones, separated by commas, until `manage.py reseal` has run
STILLROOM_HOSTS       host names that are served, separated by commas
STILLROOM_ORIGINS     origins trusted for forms behind a proxy, such as https://still.example.org
STILLROOM_HTTPS       false only where nothing but this machine reaches the port
STILLROOM_DEBUG       true while developing
DATABASE_URL          PostgreSQL; SQLite in the state folder where not set
REDIS_URL             redis://host:port/0 or unix:///path; the embedded server where not set
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import structlog
from environs import Env

from webapp import secret_key

env = Env()

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = Path(env.str("STILLROOM_STATE", str(BASE_DIR / "state"))).resolve()
STATE_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)

DEBUG = env.bool("STILLROOM_DEBUG", False)
HTTPS = env.bool("STILLROOM_HTTPS", not DEBUG)
SECRET_KEY = env.str("STILLROOM_SECRET_KEY", "") or secret_key.load(STATE_DIR / "secret_key")
SECRET_KEY_FALLBACKS: list[str] = env.list("STILLROOM_OLD_SECRET_KEYS", [])
ALLOWED_HOSTS = env.list("STILLROOM_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("STILLROOM_ORIGINS", [])
REDIS_URL = env.str("REDIS_URL", "") or f"unix://{STATE_DIR}/broker.sock"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django.forms",
    "channels",
    "csp",
    "webapp",
    "workers",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "webapp.middleware.ChooseProject",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "webapp.urls"
ASGI_APPLICATION = "webapp.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "webapp.context.project",
            ],
        },
    }
]
FORM_RENDERER = "django.forms.renderers.TemplatesSetting"

# IMMEDIATE takes the write lock when a transaction begins: without it several processes that read
# and then write meet "database is locked" at once, whatever the time-out.
SQLITE_OPTIONS: dict[str, Any] = {
    "timeout": 20,
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA foreign_keys=ON;",
}
DATABASE: dict[str, Any] = env.dj_db_url("DATABASE_URL", f"sqlite:///{STATE_DIR}/stillroom.sqlite3")
if DATABASE["ENGINE"] == "django.db.backends.sqlite3":
    DATABASE["OPTIONS"] = SQLITE_OPTIONS
DATABASE["CONN_HEALTH_CHECKS"] = True
DATABASES = {"default": DATABASE}

STORAGES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": STATE_DIR / "files"},
    },
    "artifacts": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": STATE_DIR / "artifacts"},
    },
    "prompts": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": STATE_DIR / "prompts"},
    },
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "webapp.static_storage.HashedModules"
    },
}
STATIC_URL = "/static/"
# In the state folder, so that two applications of one checkout do not write each other's files.
STATIC_ROOT = Path(env.str("STILLROOM_STATIC", "") or STATE_DIR / "static")
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
STATICFILES_DIRS = [BASE_DIR / "static"]

# Uploads beyond this go to a temporary file; a row is read at a time.
FILE_UPLOAD_MAX_MEMORY_SIZE = 1 << 20
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 << 20
PROMPT_SET_MAX_BYTES = 1 << 30
FILE_UPLOAD_PERMISSIONS = 0o600

CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "stillroom"},
    }
}

# The message is a wake-up and the run row is the truth, so it is acknowledged before the work: a
# late acknowledgement would start a long run a second time after the visibility time-out.
CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_IMPORTS = ("workers.tasks",)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_DEFAULT_QUEUE = "stillroom"
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"

WORKER_NAME = env.str("STILLROOM_WORKER", "")
WORKER_DEVICES: list[str] = env.list("STILLROOM_DEVICES", [])
WORKER_SHARED_STATE = env.bool("STILLROOM_SHARED", False)
WORKER_WARM = env.bool("STILLROOM_WARM", True)
WORKER_GRACE_SECONDS = env.float("STILLROOM_GRACE", 20.0)

AUTH_USER_MODEL = "webapp.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_AGE = 14 * 24 * 3600

CONTENT_SECURITY_POLICY: dict[str, Any] = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}
X_FRAME_OPTIONS = "DENY"
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
# Subdomains and browsers' preload lists are for the owner of the domain to decide.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

STRUCTLOG_SHARED: list[structlog.types.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *STRUCTLOG_SHARED,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "lines": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": STRUCTLOG_SHARED,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.dev.ConsoleRenderer() if DEBUG else structlog.processors.JSONRenderer(),
            ],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
    "root": {"handlers": ["stderr"], "level": env.str("STILLROOM_LOG_LEVEL", "INFO")},
    "loggers": {
        "django": {"handlers": [], "level": logging.INFO},
        "django.server": {"handlers": [], "level": logging.WARNING, "propagate": True},
    },
}
