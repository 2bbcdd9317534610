#!/usr/bin/env python3
"""A client of the tensor queue in Python: the standard library alone. With numpy, tensors are arrays.

    python3 examples/queue/client.py socket:/run/user/1000/rustai/queue.sock
    python3 examples/queue/client.py device:/dev/rustai
    python3 examples/queue/client.py socket:PATH generate "Why is the sky blue?"

Without a prompt it has the server multiply two matrices that lie in shared memory. Nothing is copied on the way. The
structs are those of kernel/include/uapi/rustai.h.
"""

import array
import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys

try:
    import numpy
except ImportError:
    numpy = None

QUERY, SETUP, BUF_REGISTER, SUBMIT, WAIT = 0, 1, 2, 4, 5
GENERATE, MATMUL = 6, 7
F32, I8, I32 = 0, 24, 26
OUT = 1
ENTRIES = 64


def layout(name, *fields):
    """A struct that starts with its size."""
    kind = type(name, (ctypes.Structure,), {"_fields_": [("size", ctypes.c_uint32), ("flags", ctypes.c_uint32), *fields]})
    return lambda **values: kind(size=ctypes.sizeof(kind), **values)


u8, u16, u32, u64, i32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
Query = layout("Query", ("major", u16), ("minor", u16), ("server", u32), ("features", u64), ("opcodes", u64), ("rest", u64 * 12))
Setup = layout("Setup", ("major", u16), ("minor", u16), ("entries", u32), ("features", u64), ("policy", u32),
               ("reserved0", u32), ("ring_bytes", u64), ("ring_offset", u64), ("reserved", u64 * 2))
BufRegister = layout("BufRegister", ("fd", i32), ("reserved0", u32), ("offset", u64), ("len", u64), ("buffer", u32),
                     ("generation", u32), ("reserved", u64 * 3))
Job = layout("Job", ("user_data", u64), ("opcode", u16), ("sched_class", u8), ("reserved0", u8), ("tensor_count", u32),
             ("tensors", u64), ("deadline_ns", u64), ("dep_seq", u64), ("model", u32), ("session", u32),
             ("session_epoch", u32), ("reserved1", u32), ("params", u64 * 8))
Tensor = layout("Tensor", ("buffer", u32), ("generation", u32), ("offset", u64), ("byte_len", u64), ("dtype", u32),
                ("quant", u32), ("ndim", u32), ("reserved0", u32), ("dims", u64 * 6))
Submit = layout("Submit", ("jobs", u64), ("count", u32), ("head", u32), ("wait", u32), ("admitted", u32),
                ("deadline_ns", u64), ("first_seq", u64), ("error", u32), ("tail", u32), ("reserved", u64))
Wait = layout("Wait", ("head", u32), ("wait", u32), ("deadline_ns", u64), ("tail", u32), ("reserved", u32))


class Client:
    """One client: a connection, or an open device."""

    def __init__(self, where):
        kind, _, path = where.partition(":")
        if kind == "device":
            self.socket, self.device = None, os.open(path, os.O_RDWR | os.O_CLOEXEC)
        elif kind == "socket":
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.socket.connect(path)
        else:
            sys.exit("give device:PATH or socket:PATH")
        self.head = 0
        self.call(QUERY, Query())
        setup = Setup(major=1, entries=ENTRIES)
        fd = self.call(SETUP, setup)
        self.ring = mmap.mmap(self.device if fd is None else fd, setup.ring_bytes, prot=mmap.PROT_READ, offset=setup.ring_offset)

    def call(self, op, ask, behind=b"", fd=None):
        """Runs an operation on a struct, which takes the answer. `behind` is what its address would lead to."""
        if self.socket is None:
            fcntl.ioctl(self.device, 0xBA00 | op, ask)
            return None
        data = bytes(ask)
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self.socket.sendmsg([struct.pack("=II", op, len(data)), data, behind], rights)
        reply, controls, _, _ = self.socket.recvmsg(8192, socket.CMSG_SPACE(4))
        if len(reply) < 16:
            raise ConnectionError("the server went away")
        result = struct.unpack_from("=i", reply, 8)[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        ctypes.memmove(ctypes.addressof(ask), reply[16:], len(data))
        for level, kind, payload in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return struct.unpack("=i", payload[:4])[0]
        return None

    def buffer(self, size):
        """Shared memory of `size` bytes, a multiple of 4096."""
        fd = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        # SEAL, SHRINK, GROW: its size is final.
        fcntl.fcntl(fd, 1033, 1 | 2 | 4)
        ask = BufRegister(flags=1, fd=fd, len=size)
        self.call(BUF_REGISTER, ask, fd=fd)
        return Buffer(mmap.mmap(fd, size), ask.buffer, ask.generation)

    def submit(self, opcode, tensors, params=(), wait=1):
        """Hands one job over and waits until `wait` completions are there."""
        job = Job(opcode=opcode, sched_class=1, tensor_count=len(tensors), params=(u64 * 8)(*params))
        described = b"".join(bytes(tensor) for tensor in tensors)
        ask = Submit(count=1, head=self.head, wait=wait)
        if self.socket is None:
            held = ctypes.create_string_buffer(described, len(described))
            job.tensors = ctypes.addressof(held) if tensors else 0
            ask.jobs = ctypes.addressof(job)
        self.call(SUBMIT, ask, bytes(job) + described)

    def next(self):
        """The next completion: whether more of its job follow, its result and its count."""
        while struct.unpack_from("=I", self.ring, 12)[0] == self.head:
            self.call(WAIT, Wait(head=self.head, wait=1))
        place = 64 + self.head % ENTRIES * 32
        _, flags, _, _, result, count = struct.unpack_from("=IIQQiI", self.ring, place)
        self.head = (self.head + 1) % 2**32
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return bool(flags & 1), result, count


class Buffer:
    """Registered memory."""

    def __init__(self, memory, number, generation):
        self.memory, self.number, self.generation = memory, number, generation

    def tensor(self, dtype, offset, dims, flags=0):
        """A tensor in it, as the queue describes one; the length of a row comes first."""
        size = {F32: 4, I32: 4, I8: 1}[dtype]
        for dim in dims:
            size *= dim
        return Tensor(flags=flags, buffer=self.number, generation=self.generation, offset=offset, byte_len=size,
                      dtype=dtype, ndim=len(dims), dims=(u64 * 6)(*dims))

    def floats(self, offset, count):
        """Floats in place: an array with numpy, else a view that reads and writes like a list."""
        if numpy is not None:
            return numpy.frombuffer(self.memory, numpy.float32, count, offset)
        return memoryview(self.memory)[offset:offset + count * 4].cast("f")


def multiply(client):
    m, n, k = 3, 4, 64
    buffer = client.buffer(1 << 16)
    x, w, y = buffer.floats(0, m * k), buffer.floats(16384, n * k), buffer.floats(32768, m * n)
    for i in range(m * k):
        x[i] = i % 7 - 3
    for i in range(n * k):
        w[i] = i % 5 - 2
    client.submit(MATMUL, [buffer.tensor(F32, 0, [k, m]), buffer.tensor(F32, 16384, [k, n]),
                           buffer.tensor(F32, 32768, [n, m], OUT)])
    client.next()
    for row in range(m):
        for column in range(n):
            exact = sum(float(x[row * k + i]) * float(w[column * k + i]) for i in range(k))
            if exact != y[row * n + column]:
                sys.exit(f"row {row}, column {column}: {y[row * n + column]} instead of {exact}")
    arrays = "numpy arrays" if numpy is not None else "memory views"
    print(f"{m} x {n} product, right in every element; {arrays}")


def generate(client, prompt, tokens=64):
    """Prints an answer as it comes: text never holds a zero byte, so it shows by itself how far it is."""
    data = prompt.encode()
    buffer = client.buffer(1 << 16)
    buffer.memory[:len(data)] = data
    # CHAT and a temperature of 0 in the flags of the job's parameters.
    client.submit(GENERATE, [buffer.tensor(I8, 0, [len(data)]), buffer.tensor(I32, 16384, [tokens], OUT),
                             buffer.tensor(I8, 32768, [16384], OUT)], [64 | 1, tokens, 0], wait=0)
    shown, more = 0, True
    while more:
        more, _, _ = client.next()
        if more:
            # Tells the queue that the entry was read, so that later progress gets one of its own.
            client.call(WAIT, Wait(head=client.head))
        end = buffer.memory.find(b"\0", 32768 + shown)
        text = buffer.memory[32768 + shown:end]
        whole = text.decode(errors="ignore")
        shown += len(whole.encode())
        print(whole, end="", flush=True)
    print()


def main():
    if len(sys.argv) < 2 or (len(sys.argv) > 2 and sys.argv[2:3] != ["generate"]):
        sys.exit("usage: client.py device:PATH | socket:PATH [generate PROMPT]")
    client = Client(sys.argv[1])
    if len(sys.argv) > 3:
        generate(client, sys.argv[3])
    else:
        multiply(client)


if __name__ == "__main__":
    main()
