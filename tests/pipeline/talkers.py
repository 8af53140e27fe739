"""Units of work that say something, for the tests of logs."""

from __future__ import annotations

import logging
from dataclasses import dataclass


@dataclass(frozen=True)
class Talk:
    """A job: how many lines a unit says, and whether it then fails."""

    name: str
    lines: int = 1
    fails: bool = False


def talk(job: Talk) -> int:
    log = logging.getLogger("pipeline.tests.talkers")
    log.debug("never kept")
    for line in range(job.lines):
        log.info("%s says %d", job.name, line)
    logging.getLogger("somebody.else").warning("not ours")
    log.warning("%s opens postgresql://anna:%s@db/x", job.name, "pa/ss")
    if job.fails:
        raise ZeroDivisionError("password=opensesame")
    return job.lines
