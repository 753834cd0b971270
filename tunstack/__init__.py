"""tunstack: a userspace TCP/IP stack on trio, the gateway of VMs, containers and sandboxed guests.

    async with tunstack.open_gateway() as gateway:
        await gateway.attach_namespace(pid)
        stream = await gateway.open_tcp_stream(port=8080)

The names below are imported when they are first used, so that `import tunstack` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunstack.gateway.gateway import Gateway as Gateway
    from tunstack.gateway.gateway import open_gateway as open_gateway
    from tunstack.gateway.plan import AddressPlan as AddressPlan
    from tunstack.gateway.plan import Publish as Publish
    from tunstack.limits import Limits as Limits
    from tunstack.sockets import TcpListener as TcpListener
    from tunstack.sockets import TcpStream as TcpStream
    from tunstack.sockets import UdpSocket as UdpSocket

__version__ = "0.1.0"

_PUBLIC = {
    "AddressPlan": "tunstack.gateway.plan",
    "Gateway": "tunstack.gateway.gateway",
    "Limits": "tunstack.limits",
    "Publish": "tunstack.gateway.plan",
    "TcpListener": "tunstack.sockets",
    "TcpStream": "tunstack.sockets",
    "UdpSocket": "tunstack.sockets",
    "open_gateway": "tunstack.gateway.gateway",
}

__all__ = [
    "AddressPlan",
    "Gateway",
    "Limits",
    "Publish",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "__version__",
    "open_gateway",
]


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'tunstack' has no attribute '{name}'") from None
    return getattr(importlib.import_module(module), name)
