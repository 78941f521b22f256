"""Clients that leave and what is no request, all at once: the server is afterwards as it was."""

import pytest

pytest.importorskip("uvicorn", reason="pip install 'graft-research[serve]'")

from research.bench import soak
from tests.serve.test_server import Client


@pytest.mark.slow
def test_nothing_is_left_of_clients_that_come_and_go():
    client = Client()
    url = f"http://127.0.0.1:{client.port}"
    seen = soak.run(url, clients=6, seconds=8)
    left = soak.settled(url)
    assert [left[f"graft_{name}"] for name in ("running", "waiting", "pages_held")] == [0, 0, 0]
    assert seen.failed == 0 and not seen.errors and client.worker.failed is None
    assert len(seen.texts) <= 1  # 0 on a machine that is too busy
    assert {status for (kind, status), _ in seen.statuses.items() if kind == "broken"} <= {400, 404}
    client.server.should_exit = True
    client.thread.join(20)
    assert not client.thread.is_alive()
