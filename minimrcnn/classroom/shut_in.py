"""Linux: nothing to write but one folder, no loopback but a live one, and no rights to undo that.

To be called in a process that has namespaces of its own (`fence.APART`), where it is root over nothing else.
Called anywhere else, as the real root, it would make the whole machine read-only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

# Numbers of the kernel's interface: linux/mount.h, linux/prctl.h, linux/if.h, linux/sockios.h.
MS_BIND, AT_FDCWD, AT_RECURSIVE = 0x1000, -100, 0x8000
SYS_MOUNT_SETATTR = 442  # on x86-64 and arm64, since Linux 5.12
MOUNT_ATTR_RDONLY = 0x1
PR_CAPBSET_DROP, CAPABILITIES = 24, 41
IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x1, 0x8913, 0x8914
OPEN = ("/dev", "/proc")  # devices and semaphores; written to by every program


def read_only_except(folder: Path) -> bool:
    """Make the file system read-only, but for a folder, in this mount namespace; False where that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(folder)
    if libc.mount(place, place, None, ctypes.c_ulong(MS_BIND), None) != 0:
        return False

    def change(path: bytes, to_set: int, to_clear: int) -> bool:
        attributes = struct.pack("4Q", to_set, to_clear, 0, 0)  # struct mount_attr
        size = ctypes.c_size_t(len(attributes))
        return libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attributes, size) == 0

    if not change(b"/", MOUNT_ATTR_RDONLY, 0):
        return False
    return all(change(os.fsencode(path), 0, MOUNT_ATTR_RDONLY) for path in (folder, *OPEN))


def give_up_rights() -> None:
    """What this process starts from now on is root in name alone: it cannot mount, nor trace its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)


def loopback_up() -> None:
    """Switch on 127.0.0.1, by which notebook and kernel talk: in a fresh network namespace it is off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        name, flags = struct.unpack("16sH14x", request)
        if not flags & IFF_UP:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | IFF_UP))
