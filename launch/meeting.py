"""The machines of a run come together: that they reach each other, and were told the same, before a process starts.

The first machine's command serves the store over which the processes find each other. It listens before a process
starts, so no port is promised that another program could take, and it stays until every machine's processes have left.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import DistError, TCPStore

from core.errors import ConfigError
from launch.machines import Machines

MEET_S = 600.0  # for the slowest machine to come
PART_S = 30.0  # for the others' processes to leave, once those of the first machine have
_POLL_S = 0.2


@dataclass(frozen=True)
class Meeting:
    """The store over which the processes of all machines find each other, and its port on machine 0."""

    machines: Machines
    store: TCPStore
    port: int

    def part(self) -> None:
        """Let the store go when the processes of all machines have left; machine 0 waits for them, not for long."""
        with suppress(DistError):  # where machine 0 is gone, nobody waits for this one
            self.store.set(f"left-{self.machines.rank}", "")
            if self.machines.rank == 0:
                everybody = [f"left-{rank}" for rank in range(self.machines.count)]
                _wait_for(self.store, everybody, time.monotonic() + PART_S)


def meet(machines: Machines, processes: int) -> Meeting:
    """Serve the store, or find it, and see that all machines are there and were told the same.

    Raises:
        ConfigError: the machines cannot reach each other, were told different things, or are not all there in time.
    """
    deadline = time.monotonic() + MEET_S
    if machines.rank == 0:
        meeting = Meeting(machines, *_serve(machines))
    else:
        meeting = Meeting(machines, _find(machines, deadline), machines.port)
    try:
        if machines.count > 1:
            _expect_agreement(meeting.store, machines, processes, deadline)
    except ConfigError:
        meeting.part()  # the others find the same mistake, and need the store for it
        raise
    except DistError as error:
        raise ConfigError(
            f"machine 0 has left {machines.host}:{machines.port} before the run began ({error})."
        ) from error
    return meeting


def _serve(machines: Machines) -> tuple[TCPStore, int]:
    try:
        if machines.count == 1:  # not a port that others could reach
            listener = socket.create_server((machines.host, machines.port))
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(("", machines.port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", machines.port))
    except OSError as error:
        raise ConfigError(
            f"port {machines.port} of this machine cannot be listened on ({error.strerror}). Give --main-address "
            "another port, on all machines."
        ) from error
    port = listener.getsockname()[1]
    # The store closes the listener.
    return TCPStore("localhost", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()), port


def _find(machines: Machines, deadline: float) -> TCPStore:
    where = (machines.host, machines.port)
    while True:
        # Not left to the store's own patience, during which no signal is heard.
        try:
            socket.create_connection(where, timeout=5).close()
            rest = timedelta(seconds=max(1.0, deadline - time.monotonic()))
            return TCPStore(*where, is_master=False, wait_for_workers=False, timeout=rest)
        except (OSError, DistError) as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"machine {machines.rank} cannot reach machine 0 at {where[0]}:{where[1]} ({error}). Start the "
                    "command there too, open the ports between the machines, or mend --main-address."
                ) from error
            time.sleep(_POLL_S)


def _expect_agreement(store: TCPStore, machines: Machines, processes: int, deadline: float) -> None:
    if store.add(f"comers-{machines.rank}", 1) > 1:
        raise ConfigError(f"--machine-rank {machines.rank} is given on two machines. Give each its own.")
    store.set(f"plan-{machines.rank}", f"{machines.count} {processes}")
    keys = [f"plan-{rank}" for rank in range(machines.count)]
    if not _wait_for(store, keys, deadline):
        missing = next(key for key in keys if not store.check([key])).replace("plan-", "")
        raise ConfigError(
            f"machine {missing} of {machines.count} has not come within {MEET_S:g} s. Start it there too."
        )
    for rank, key in enumerate(keys):
        count, there = map(int, store.get(key).split())
        if (count, there) != (machines.count, processes):
            raise ConfigError(
                f"machine {rank} was told of {count} machines and {there} processes on each, machine {machines.rank} "
                f"of {machines.count} and {processes}. Give all machines the same --num-machines and --processes."
            )


def _wait_for(store: TCPStore, keys: list[str], deadline: float) -> bool:
    """Whether all keys are there before the deadline."""
    while not store.check(keys):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
