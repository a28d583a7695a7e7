"""Rows: fields, constraints and properties; reads are methods of the query sets."""

from webapp.models.accounts import ApiToken, LoginFailure, User
from webapp.models.checkpoints import ModelRoot, RegisteredModel
from webapp.models.diagnoses import PairDiagnosis
from webapp.models.events import Event, MetricChunk, MetricRollup, PositionRow
from webapp.models.families import Family
from webapp.models.machines import Device, Lease, Worker
from webapp.models.pairs import Pair, PairTeacher
from webapp.models.projects import AuditEntry, Membership, Project, Role
from webapp.models.prompt_sets import PromptSet
from webapp.models.recipes import Recipe
from webapp.models.runs import Artifact, Comment, Run
from webapp.models.secrets import ModelEndpoint, ProjectSecret

__all__ = [
    "ApiToken",
    "Artifact",
    "AuditEntry",
    "Comment",
    "Device",
    "Event",
    "Family",
    "Lease",
    "LoginFailure",
    "Membership",
    "MetricChunk",
    "MetricRollup",
    "ModelEndpoint",
    "ModelRoot",
    "Pair",
    "PairDiagnosis",
    "PairTeacher",
    "PositionRow",
    "Project",
    "ProjectSecret",
    "PromptSet",
    "Recipe",
    "RegisteredModel",
    "Role",
    "Run",
    "User",
    "Worker",
]
