"""Addresses of pages and sockets."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, path

from webapp.views import account, launch, run_actions, run_data, run_list, run_page

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
    path("runs/", run_list.index, name="runs"),
    path("runs/bulk/", run_list.bulk, name="runs-bulk"),
    path("runs/new/", launch.new, name="run-new"),
    path("runs/new/check/", launch.check, name="run-check"),
    path("runs/new/knobs/", launch.knobs, name="run-knobs"),
    path("runs/<slug:public_id>/", run_page.page, name="run"),
    path("runs/<slug:public_id>/row/", run_list.row, name="run-row"),
    path("runs/<slug:public_id>/status/", run_page.status, name="run-status"),
    path("runs/<slug:public_id>/figures/", run_page.figures, name="run-figures"),
    path("runs/<slug:public_id>/positions/", run_page.positions, name="run-positions"),
    path("runs/<slug:public_id>/samples/", run_page.samples, name="run-samples"),
    path("runs/<slug:public_id>/log/", run_page.log, name="run-log"),
    path("runs/<slug:public_id>/artifacts/", run_page.artifacts, name="run-artifacts"),
    path("runs/<slug:public_id>/details/", run_page.details, name="run-details"),
    path("runs/<slug:public_id>/series.json", run_data.series_json, name="run-series"),
    path(
        "runs/<slug:public_id>/positions.json", run_data.positions_json, name="run-positions-json"
    ),
    path("runs/<slug:public_id>/trace.json", run_data.trace_json, name="run-trace"),
    path("runs/<slug:public_id>/output/", run_data.output, name="run-output"),
    path("runs/<slug:public_id>/artifacts/<int:artifact_id>/", run_data.artifact, name="artifact"),
    path("runs/<slug:public_id>/cancel/", run_actions.cancel, name="run-cancel"),
    path("runs/<slug:public_id>/resume/", run_actions.resume, name="run-resume"),
    path("runs/<slug:public_id>/clone/", run_actions.clone, name="run-clone"),
    path("runs/<slug:public_id>/rename/", run_actions.rename, name="run-rename"),
    path("runs/<slug:public_id>/notes/", run_actions.notes, name="run-notes"),
    path("runs/<slug:public_id>/tags/", run_actions.tags, name="run-tags"),
    path("runs/<slug:public_id>/comments/", run_actions.comment, name="run-comment"),
    path(
        "runs/<slug:public_id>/comments/<int:comment_id>/",
        run_actions.edit_comment,
        name="run-comment-edit",
    ),
    path("runs/<slug:public_id>/review/", run_actions.review, name="run-review"),
]
