"""Addresses of pages and sockets."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

urlpatterns: list[URLPattern | URLResolver] = [
    path("account/", include("allauth.account.urls")),
]
websocket_urlpatterns: list[URLPattern] = []
