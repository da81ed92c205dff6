"""Turns are granted to waiting clients in rotation."""

import asyncio

from fastvlm.images.fair_turns import FairTurns


def test_one_clients_queue_does_not_delay_another_client():
    order = []

    async def work(turns, client, number):
        async with turns.turn(client):
            order.append(f"{client}{number}")
            await asyncio.sleep(0)

    async def run():
        turns = FairTurns(1)
        first = [asyncio.ensure_future(work(turns, "a", number)) for number in range(4)]
        await asyncio.sleep(0)
        later = [asyncio.ensure_future(work(turns, client, 0)) for client in "bc"]
        await asyncio.gather(*first, *later)

    asyncio.run(run())
    assert order == ["a0", "a1", "a2", "b0", "c0", "a3"]  # b and c came while a1 held the turn


def test_no_more_turns_than_the_limit_at_a_time():
    running, most = 0, 0

    async def work(turns, client):
        nonlocal running, most
        async with turns.turn(client):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    async def run():
        turns = FairTurns(2)
        await asyncio.gather(*(work(turns, client) for client in "aabbcc"))

    asyncio.run(run())
    assert most == 2


def test_a_cancelled_wait_gives_its_turn_to_the_next():
    async def run():
        turns, order = FairTurns(1), []

        async def work(name):
            async with turns.turn(name):
                order.append(name)

        async with turns.turn("holder"):
            waiting = [asyncio.ensure_future(work(name)) for name in "abc"]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
        waiting[1].cancel()  # its turn has just been granted
        await asyncio.gather(*waiting, return_exceptions=True)
        async with turns.turn("d"):  # the limit is whole again
            return order

    assert asyncio.run(run()) == ["c"]
