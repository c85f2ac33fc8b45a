import copy
from typing import Any

import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

from local import deploy
from tests.template.reading import MACHINE


@pytest.fixture(scope="session")
def template() -> Any:
    """template.yaml as it is written; read only."""
    return yaml_parse(deploy.TEMPLATE.read_text())


@pytest.fixture(scope="session")
def expanded(template: Any) -> Any:
    """template.yaml as CloudFormation gets it, out of SAM's own translator; read only."""
    source = copy.deepcopy(template)
    return deploy._expand(source, deploy.parameters_of(source, {}))


@pytest.fixture(scope="session")
def machine() -> Any:
    """The state machine's definition, its substitutions not filled in; read only."""
    return yaml.safe_load(MACHINE.read_text())
