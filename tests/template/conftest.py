import copy
from typing import Any

import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

from local import deploy
from tests.template.reading import MACHINES


@pytest.fixture(scope="session")
def template() -> Any:
    """template.yaml as it is written; read only."""
    return yaml_parse(deploy.TEMPLATE.read_text())


@pytest.fixture(scope="session")
def expanded(template: Any) -> Any:
    """template.yaml as CloudFormation gets it, out of SAM's own translator; read only."""
    source = copy.deepcopy(template)
    return deploy._expand(source, deploy.parameters_of(source, {}))


@pytest.fixture(scope="session", params=MACHINES)
def machine_name(request: pytest.FixtureRequest) -> str:
    """Each state machine in turn, by the name of its file."""
    return str(request.param)


@pytest.fixture(scope="session")
def machine(machine_name: str) -> Any:
    """The state machine's definition, its substitutions not filled in; read only."""
    return yaml.safe_load(MACHINES[machine_name].read_text())


@pytest.fixture(scope="session")
def machine_resource(machine_name: str, template: Any) -> Any:
    """The state machine's properties in the template."""
    return template["Resources"][f"{machine_name.capitalize()}StateMachine"]["Properties"]
