"""An app over a folder beside a secret, and a browser of it, for the attacks."""

import pytest
from app_page import Client, started


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("below") / "root"
    folder.mkdir()
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    return folder


@pytest.fixture(scope="module")
def port(root):
    with started(root) as (number, _):
        yield number


@pytest.fixture
def client(port):
    return Client(port)


@pytest.fixture
def jobs(root):
    """What the buttons do. Imported where it is wanted, for gradio takes seconds."""
    from deepsynth_min.app_parts.jobs import Jobs

    return Jobs(root.resolve())
