"""Rewards in a job of several processes: each computes those of its share of the texts."""

from collections.abc import Sequence

import jax

from research.parallel.exchange import exchange
from research.posttrain.rewards import Answered, RewardFailed, Rewards


def shared_rewards(
    rewards: Rewards, texts: Sequence[Answered]
) -> list[tuple[float, dict[str, float]]]:
    """`rewards(texts)`, of texts that every process of the job has. Code is run, and a model of
    reward asked, in one process for each text.

    RewardFailed in all of them if it is raised in one, so that none waits for the others.
    """
    process, count = jax.process_index(), jax.process_count()
    first, end = (len(texts) * part // count for part in (process, process + 1))
    mine, scored, failed = texts[first:end], [], None
    try:
        scored = rewards(mine) if mine else []
    except RewardFailed as error:
        failed = error
    parts = exchange({"scored": scored, "failed": None if failed is None else str(failed)})
    if failed is not None:
        raise failed
    for part in parts:
        if part["failed"] is not None:
            raise RewardFailed(part["failed"])
    return [(total, each) for part in parts for total, each in part["scored"]]
