"""The machines of a run: which one this is, where the first one listens, and that they have come to the same run.

The first machine's command serves the store over which the processes find each other. It listens before a process
starts, so no port is promised that another program could take, and it stays until every machine's processes have left.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, TCPStore

from core.config import read_recipe
from core.errors import ConfigError

DEFAULT_PORT = 29500
MEET_S = 600.0  # for the slowest machine to come
PART_S = 30.0  # for the others' processes to leave, once those of the first machine have
_POLL_S = 0.2
_PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")  # Accelerate's words for one model, copied to every process


@dataclass(frozen=True)
class Machines:
    """How many there are, which one this is, and where the first one listens (port 0: any that is free)."""

    count: int = 1
    rank: int = 0
    host: str = "127.0.0.1"
    port: int = 0


def machines_of(count: int | None, rank: int | None, address: str | None) -> Machines:
    """The machines that the command line's words mean.

    Raises:
        ConfigError: a word is missing, or out of range, or given for one machine.
    """
    count = 1 if count is None else count
    if count < 1:
        raise ConfigError(f"--num-machines {count}: a run needs at least one machine.")
    if count == 1:
        if rank or address:
            word = f"--main-address {address}" if address else f"--machine-rank {rank}"
            raise ConfigError(f"{word} is for runs on several machines. Give --num-machines too, or leave it out.")
        return Machines()
    if rank is None:
        raise ConfigError(f"--num-machines {count}: give --machine-rank too, from 0 to {count - 1}, another on each.")
    if not 0 <= rank < count:
        raise ConfigError(f"--machine-rank {rank}: {count} machines have ranks from 0 to {count - 1}.")
    if not address:
        raise ConfigError(
            f"--num-machines {count}: give --main-address too: the host name or address of machine 0, the same on all."
        )
    return Machines(count, rank, *_host_and_port(address))


def plan_of(
    accelerate_config: Path, count: int | None, rank: int | None, address: str | None
) -> tuple[Machines, int, dict[str, str]]:
    """Machines, processes on this one, and environment of a file of `accelerate config`; given words come first.

    Raises:
        ConfigError: no such file, or one of a run that is not of this kind.
    """
    if not accelerate_config.is_file():
        raise ConfigError(f"{accelerate_config}: no such file. Examples are in launch/accelerate/.")
    told = read_recipe(accelerate_config)
    if (kind := told.get("distributed_type", "NO")) not in _PLAIN:
        raise ConfigError(
            f"{accelerate_config}: distributed_type is {kind}: runs are started as {', '.join(_PLAIN)} here."
        )
    count = int(told.get("num_machines", 1)) if count is None else count
    if count > 1:
        rank = int(told.get("machine_rank", 0)) if rank is None else rank
        host, port = told.get("main_process_ip"), told.get("main_process_port", DEFAULT_PORT)
        address = address or (f"{host}:{port}" if host else None)
    machines = machines_of(count, rank, address)
    total = int(told.get("num_processes", 1))
    if total % machines.count:
        raise ConfigError(
            f"{accelerate_config}: num_processes is {total}, which {machines.count} machines cannot share equally."
        )
    environment = {}
    if told.get("gpu_ids", "all") not in ("all", "null", ""):
        environment["CUDA_VISIBLE_DEVICES"] = told["gpu_ids"]
    if told.get("use_cpu", "false").lower() == "true":
        environment["ACCELERATE_USE_CPU"] = "true"
    return machines, total // machines.count, environment


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


def _host_and_port(address: str) -> tuple[str, int]:
    """`host`, `host:port`, `[address of IPv6]:port`."""
    host, _, port = address.rpartition(":") if address.count(":") == 1 or "]:" in address else (address, "", "")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--main-address {address}: {port} is no port. Give HOST or HOST:PORT.")
    return host.strip("[]"), int(port or DEFAULT_PORT)


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
