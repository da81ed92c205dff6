"""A log that a client cannot flood."""

import logging

from fastvlm.server.http.log_limit import LogLimit


def record(level=logging.ERROR, name="fastvlm.server", text="a request failed"):
    return logging.LogRecord(name, level, "", 0, text, None, None)


def test_a_burst_passes_and_the_rest_is_counted():
    now_s = 0.0
    limit = LogLimit(3, 10.0, clock=lambda: now_s)
    assert [limit.filter(record()) for _ in range(8)] == [True] * 3 + [False] * 5
    assert limit.filter(record(name="asyncio")) and limit.filter(record(logging.WARNING))
    now_s = 10.0
    later = record()
    assert limit.filter(later) and later.getMessage() == "a request failed (5 more were suppressed)"
    assert [limit.filter(record()) for _ in range(3)] == [True, True, False]


def test_what_was_asked_for_is_never_left_out():
    limit = LogLimit(1, 10.0, clock=lambda: 0.0)
    assert all(limit.filter(record(logging.INFO)) for _ in range(100))
