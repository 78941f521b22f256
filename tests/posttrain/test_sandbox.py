"""The sandbox: what code may do in it, and what it may not."""

import pytest

from research.posttrain.rewards import REWARDS
from research.posttrain.sandbox import run_code

SLOW = pytest.mark.slow  # each starts a Python


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import json, math\nopen('a', 'w').write('1')\nassert json.load(open('a')) == 1", ""),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("while True: pass", "more than 1 s"),
        pytest.param("import os; os._exit(0)", "ended early", marks=SLOW),
        pytest.param("assert 1 == 2, 'no'", "AssertionError: no", marks=SLOW),
        pytest.param("x = 'a' * (1 << 31)", "MemoryError", marks=SLOW),
        pytest.param("open('a', 'wb').write(b'x' * (2 << 20))", "File too large", marks=SLOW),
        pytest.param("open('/tmp/elsewhere', 'w')", "outside the folder", marks=SLOW),
        pytest.param("import os; os.rename('/tmp/a', 'b')", "outside the folder", marks=SLOW),
        pytest.param("import socket; socket.socket()", "socket.__new__ is refused", marks=SLOW),
        pytest.param("import os; os.system('true')", "os.system is refused", marks=SLOW),
        pytest.param("import os; os.fork()", "os.fork is refused", marks=SLOW),
        pytest.param("import ctypes; ctypes.CDLL(None)", "ctypes.dlopen is refused", marks=SLOW),
        pytest.param(
            "files = [open('/dev/null') for _ in range(99)]", "Too many open files", marks=SLOW
        ),
    ],
)
def test_what_code_may_do(source, reason):
    outcome = run_code(source, seconds=1)
    assert outcome.passed == (not reason) and reason in outcome.reason


@pytest.mark.slow
def test_code_is_rewarded_where_it_passes_the_tests():
    record = {"tests": "assert add(2, 3) == 5"}
    said = "Here:\n```python\ndef add(a, b):\n    return a {} b\n```\n"
    assert [REWARDS["code"]("", said.format(sign), record) for sign in "+-"] == [1.0, 0.0]
