"""The process group of the workers: its store, gloo and NCCL listen on one address only.

On Ray Train's means: the configuration and backend of `TorchTrainer`, whose own store listens on every
interface. Nothing here asks a peer for a token, so the address decides who may connect: the loopback
interface if all workers are on one machine, else the address by which Ray knows each node.
"""

from __future__ import annotations

import datetime
import os
import socket
from typing import Any

import ray
import ray.util
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from capsdist.train.engine.interfaces import LOOPBACK, interface_settings

__all__ = ["GroupConfig", "join_group", "listen"]


class GroupConfig(TorchConfig):
    """`TorchConfig` with a backend that listens on one address; `backend` must be given."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Class of the backend that Ray's controller makes."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Initialise the process group on all workers, as `_TorchBackend` does but for where it listens."""
        nodes = worker_group.execute(ray.util.get_node_ip_address)
        one_machine = len(set(nodes)) == 1  # nodes of one address share its interfaces
        addresses = [LOOPBACK] * len(nodes) if one_machine else nodes
        port, descriptor = worker_group.execute_single(0, listen, addresses[0])
        worker_group.execute(_set_torch_distributed_env_vars)
        joining = [
            worker_group.execute_single_async(
                rank,
                join_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(nodes),
                address=address,
                store=(addresses[0], port),
                descriptor=descriptor if rank == 0 else None,
                timeout_s=backend_config.timeout_s,
            )
            for rank, address in enumerate(addresses)
        ]
        ray.get(joining)


def listen(address: str) -> tuple[int, int]:
    """Listen on a free port of `address`; return the port and the descriptor, which stays open."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        return server.getsockname()[1], server.detach()


def join_group(
    *,
    backend: str,
    world_rank: int,
    world_size: int,
    address: str,
    store: tuple[str, int],
    descriptor: int | None,
    timeout_s: float,
) -> None:
    """Make this process rank `world_rank` of a group that meets at `store` (host and port).

    address: where gloo and NCCL listen; descriptor: of the store's listening socket in the process that
    serves it. A store that is given only an address, even 127.0.0.1, listens on all interfaces.

    Raises:
        RunError: no interface of this machine has `address`.
    """
    os.environ.update(interface_settings(address))
    timeout = datetime.timedelta(seconds=timeout_s)
    host, port = store
    meeting = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host,
        port,
        world_size,
        is_master=descriptor is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )
    dist.init_process_group(
        backend=backend, store=meeting, rank=world_rank, world_size=world_size, timeout=timeout
    )
