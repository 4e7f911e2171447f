"""Writes docs/schemas from the types of the commands' JSON output: ``python -m tests.docs.schemas``."""

from pathlib import Path

import msgspec

from pyproxy.backends.drift import DriftDocument
from pyproxy.cli.check_config import CheckDocument
from pyproxy.cli.doctor import DoctorReport
from pyproxy.cli.explain_report import ExplanationDocument
from pyproxy.cli.kernel_services import ServiceRulesList
from pyproxy.cli.plan_report import PlanDocument
from pyproxy.cli.version import VersionDocument
from pyproxy.plan.service_values import ServiceList
from pyproxy.serve.agent_status import AgentStatus

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
TYPES: dict[str, type[msgspec.Struct]] = {
    "doctor-report.json": DoctorReport,
    "agent-status.json": AgentStatus,
    "configuration-check.json": CheckDocument,
    "drift.json": DriftDocument,
    "explanation.json": ExplanationDocument,
    "plan.json": PlanDocument,
    "service-list.json": ServiceList,
    "service-rules-list.json": ServiceRulesList,
    "version.json": VersionDocument,
}
"""By file, the type of the document."""


def schema_text(document: type[msgspec.Struct]) -> str:
    """Return the JSON schema of a document."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(document)}
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, document in TYPES.items():
        (FOLDER / name).write_text(schema_text(document))
