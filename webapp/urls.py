"""Addresses of pages and sockets."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from webapp.views import account

urlpatterns: list[URLPattern | URLResolver] = [
    path("", account.home, name="home"),
    path("log-in/", account.log_in, name="login"),
    path("log-out/", account.log_out, name="logout"),
    path("account/", account.account, name="account"),
    path("account/password/", account.PasswordView.as_view(), name="password"),
    path("account/tokens/<int:token_id>/delete/", account.delete_token, name="token-delete"),
    path("members/", account.members, name="members"),
    path("members/<str:username>/remove/", account.remove_member, name="member-remove"),
    path("audit/", account.audit_log, name="audit"),
]
