"""Waits in the event loop until a file descriptor is readable."""

import asyncio
from collections.abc import Collection


async def wait_readable(descriptors: Collection[int], seconds: float) -> bool:
    """Wait until a file descriptor is readable, for some seconds at most; return whether one is."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    for each in descriptors:
        loop.add_reader(each, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        for each in descriptors:
            loop.remove_reader(each)
    return True
