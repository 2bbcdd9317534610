"""What the engines share: folders, running a program and reading its peak memory, Python environments, compiler facts."""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "target" / "peers"
PROGRAMS = Path(__file__).resolve().parent / "programs"
# Engines get this context where a program would otherwise take the model's own, which may be huge.
CONTEXT = 4096
# Tokens of the short prompt for programs that take ids rather than text; the prompt has about as many.
SHORT_PROMPT = 32


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def strings(command):
    return [str(word) for word in command]


def run(command, environment, errors=False):
    """Runs a program; returns its output, its wall time in seconds and its peak resident set in bytes.

    With `errors`, its standard error counts as output. It runs in a folder below target/, where it may leave logs.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        started = time.perf_counter()
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out if errors else err}
        process = subprocess.Popen(strings(command), env=environment, cwd=PEERS, **streams)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
        if process.returncode != 0:
            err.seek(0)
            tail = (text if errors else err.read())[-2000:]
            raise RuntimeError(f"{Path(command[0]).name}: exit code {process.returncode}\n{tail}")
        return text, wall, usage.ru_maxrss * 1024


def python_with(name, packages):
    """The interpreter of a Python environment of this name below target/peers, which holds the packages."""
    home = PEERS / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        say(f"making a Python environment with {', '.join(packages)}")
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        (home / "complete").touch()
    return python


def tools_python():
    """A Python with the build tools and numpy."""
    return python_with("venv", ["cmake", "ninja", "numpy"])


def installed(python, package):
    """A package's name and version in a Python environment."""
    found = subprocess.run([python, "-m", "pip", "show", package], capture_output=True, text=True, check=True).stdout
    return f"{package} {found.split('Version: ')[1].splitlines()[0]}"


AMX_PROBE = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
struct config { unsigned char palette, start, reserved[14]; unsigned short bytes[16]; unsigned char rows[16]; };
__attribute__((noinline)) void litter(void) {
    volatile unsigned char stack[4096];
    for (int i = 0; i < 4096; i++) stack[i] = 255;
}
__attribute__((noinline)) void use_tiles(void) {
    struct config config __attribute__((aligned(64))) = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) { config.bytes[tile] = 64; config.rows[tile] = 16; }
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_release();
}
int main(void) {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1; /* ask for the tile registers */
    litter();
    use_tiles();
    return 0;
}
"""


def amx_is_broken():
    """Whether the processor announces AMX, but optimised code of this compiler that uses it crashes.

    Some virtual machines refuse the tile registers, and GCC 12 drops stores in front of the instruction that configures
    them. A native build of llama.cpp dies of its first tile instruction then.
    """
    if " amx_tile" not in Path("/proc/cpuinfo").read_text():
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.c"), Path(folder, "probe")
        source.write_text(AMX_PROBE)
        built = subprocess.run(["cc", "-O2", "-mamx-tile", "-o", program, source], capture_output=True)
        return built.returncode == 0 and subprocess.run([program], capture_output=True).returncode != 0
