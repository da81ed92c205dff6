"""Our OpenAPI document, and requests that a machine makes of it: no crash, no answer that it does not describe."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fastvlm.server.openai.chat import ChatRequest
from fastvlm.server.openapi import docs_page, document
from fastvlm.server.routes import API_ROUTES

# That what the document allows is also answered with 200 is not checked: what a data URI, a schema to be enforced or a
# prompt of so many tokens holds cannot be said in a document.
NOT_CHECKED = [positive_data_acceptance]
EXAMPLES = 10  # of each operation and mode: the suite stays under a minute
ASKING = {route.path for route in API_ROUTES if route.request is not None}


@pytest.fixture(scope="module")
def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {result.ok().path: result.ok() for result in schema.get_all_operations()}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_is_described_is_what_is_answered(server, operations, mode):
    assert len(operations) == len(API_ROUTES)
    for path, operation in operations.items():
        if mode is GenerationMode.NEGATIVE and path not in ASKING:
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            case.call_and_validate(excluded_checks=NOT_CHECKED, timeout=120)

        ask()
    server.until_idle()


def test_the_document_has_what_requests_are_checked_with():
    content = document(("mini",), has_keys=True)
    asked = content["components"]["schemas"]["ChatRequest"]
    assert set(asked["properties"]) == set(ChatRequest.model_fields)
    assert content["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    secured = {path for path, methods in content["paths"].items() for one in methods.values() if "security" in one}
    assert {path for path in content["paths"] if path.startswith(("/v1/", "/api/"))} | {"/metrics"} == secured


def test_the_page_of_the_document_names_every_field_and_loads_nothing():
    page = docs_page(document(("mini",), has_keys=False))
    assert all(f"<code>{name}</code>" in page for name in ChatRequest.model_fields)
    assert "<script" not in page and "http" not in page.replace("http(s)", "").replace("https://...", "")
