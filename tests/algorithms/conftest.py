"""In these tests a minibatch is one loss; that its parts add up to it is shown where runs are tested."""

import pytest


@pytest.fixture(autouse=True)
def rows_at_once(monkeypatch):
    monkeypatch.setattr("difftilt.algorithms.minibatches.AT_ONCE", 10**9)
