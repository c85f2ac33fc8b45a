import pytest
from moto import mock_aws


@pytest.fixture(scope="module")
def aws():
    """Emulated AWS in this process; nothing reaches the network."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
