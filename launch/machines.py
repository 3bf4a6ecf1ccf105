"""What the command line says of processes and machines: how many, which one this is, where the first one listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import read_recipe
from core.errors import ConfigError

DEFAULT_PORT = 29500
_PLAIN = ("NO", "MULTI_GPU", "MULTI_CPU")  # Accelerate's words for one model, copied to every process


@dataclass(frozen=True)
class Machines:
    """How many there are, which one this is, and where the first one listens (port 0: any that is free)."""

    count: int = 1
    rank: int = 0
    host: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True)
class Words:
    """What `shardclip train` was told of processes and machines.

    Attributes:
        processes: on this machine; None: one per GPU, or one on the CPU.
        environment: of the processes, beside this command's own.
    """

    machines: Machines
    processes: int | None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        """Processes of all machines; None where the GPUs decide."""
        return None if self.processes is None else self.processes * self.machines.count


def words_of(
    processes: int | None,
    accelerate_config: Path | None,
    num_machines: int | None,
    machine_rank: int | None,
    main_address: str | None,
) -> Words:
    """The words of the command line, or of the file that it names.

    Raises:
        ConfigError: they do not fit each other.
    """
    if accelerate_config and processes is not None:
        raise ConfigError(f"--processes {processes}: {accelerate_config} says how many. Give one of the two.")
    if processes is not None and processes < 1:
        raise ConfigError(f"--processes {processes}: a machine needs at least one.")
    if accelerate_config:
        return Words(*plan_of(accelerate_config, num_machines, machine_rank, main_address))
    return Words(machines_of(num_machines, machine_rank, main_address), processes)


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
    count = _whole(told, "num_machines", accelerate_config, 1) if count is None else count
    if count > 1:
        rank = _whole(told, "machine_rank", accelerate_config, 0) if rank is None else rank
        host, port = told.get("main_process_ip"), told.get("main_process_port", DEFAULT_PORT)
        address = address or (f"{host}:{port}" if host else None)
    machines = machines_of(count, rank, address)
    total = _whole(told, "num_processes", accelerate_config, 1)
    if total < 1 or total % machines.count:
        raise ConfigError(
            f"{accelerate_config}: num_processes is {total}, which {machines.count} machines cannot share equally."
        )
    environment = {}
    if told.get("gpu_ids", "all") not in ("all", "null", ""):
        environment["CUDA_VISIBLE_DEVICES"] = str(told["gpu_ids"])
    if str(told.get("use_cpu", "false")).lower() == "true":
        environment["ACCELERATE_USE_CPU"] = "true"
    return machines, total // machines.count, environment


def _host_and_port(address: str) -> tuple[str, int]:
    """`host`, `host:port`, `[address of IPv6]:port`."""
    host, _, port = address.rpartition(":") if address.count(":") == 1 or "]:" in address else (address, "", "")
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--main-address {address}: {port} is no port. Give HOST or HOST:PORT.")
    return host.strip("[]"), int(port or DEFAULT_PORT)


def _whole(told: dict[str, Any], key: str, where: Path, usual: int) -> int:
    text = str(told.get(key, usual))
    if not text.isdecimal():
        raise ConfigError(f"{where}: {key} is {text!r}: a whole number is needed.")
    return int(text)
