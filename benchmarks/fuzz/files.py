"""Damage to files and folders, of which the digests know nothing."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path

from benchmarks.fuzz.damages import damage
from benchmarks.fuzz.victims import Inapplicable, Victim

# Bytes


@damage()
def flip_bits(victim: Victim) -> None:
    file = victim.file()
    content = bytearray(victim.read(file))
    for _ in range(victim.random.choice([1, 1, 2, 16])):
        if content:
            content[victim.random.randrange(len(content))] ^= 1 << victim.random.randrange(8)
    file.write_bytes(content)


@damage()
def insert_bytes(victim: Victim) -> None:
    file = victim.file()
    content, at = victim.read(file), victim.random.randint(0, file.stat().st_size)
    file.write_bytes(content[:at] + victim.random.randbytes(victim.random.choice([1, 4, 1000])) + content[at:])


@damage()
def delete_bytes(victim: Victim) -> None:
    file = victim.file()
    content, at = victim.read(file), victim.random.randint(0, file.stat().st_size)
    file.write_bytes(content[:at] + content[at + victim.random.choice([1, 4, 100]) :])


@damage()
def truncate(victim: Victim) -> None:
    file = victim.file()
    os.truncate(file, victim.random.randrange(max(1, file.stat().st_size - 1)))


@damage()
def empty(victim: Victim) -> None:
    victim.file().write_bytes(b"")


@damage()
def zeros(victim: Victim) -> None:
    file = victim.file()
    file.write_bytes(bytes(file.stat().st_size))


@damage()
def noise(victim: Victim) -> None:
    file = victim.file()
    file.write_bytes(victim.random.randbytes(file.stat().st_size + 1))


@damage()
def repeat(victim: Victim) -> None:
    file = victim.file()
    file.write_bytes(victim.read(file) * 2)


@damage()
def sparse(victim: Victim) -> None:
    """Eight terabytes that take no room: whoever reads them does not come back."""
    files = [file for file in victim.files() if file.suffix != ".data"]
    os.truncate(victim.random.choice(files), 2**43)


@damage("external", rare=True)
def sparse_weights(victim: Victim) -> None:
    """The one file that may be long. So it is read, for a while."""
    os.truncate(victim.path / "decoder.onnx.data", 2**33)


# Names


@damage()
def swap_files(victim: Victim) -> None:
    one, other = victim.file(), victim.file()
    if victim.read(one) == victim.read(other):
        raise Inapplicable
    aside = victim.path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@damage()
def rename(victim: Victim) -> None:
    file = victim.file()
    name = victim.random.choice([file.name.upper(), f"{file.name}.bak", "\n", "\x1b[31m", "ü" * 120, "CON", " "])
    file.rename(file.with_name(name))


@damage()
def rename_to_no_text(victim: Victim) -> None:
    file = os.fsencode(victim.file())
    os.rename(file, os.path.dirname(file) + b"/\xff\xfe\n\x80")  # noqa: PTH104, PTH120  # paths are text


@damage()
def remove(victim: Victim) -> None:
    victim.file().unlink()


@damage()
def remove_folder(victim: Victim) -> None:
    folder = victim.random.choice(victim.vectors("input", "output", "reference")).parent
    shutil.rmtree(victim.random.choice([folder, folder.parent, folder.parent.parent]))


@damage()
def add(victim: Victim) -> None:
    name = victim.random.choice([".hidden", "test_data/x.pb", "decoder.onnx_data", "more.onnx", "\t", "a'b\"c"])
    new = victim.path / name
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(b"more")


@damage()
def add_thousands(victim: Victim) -> None:
    folder = victim.path / "more"
    folder.mkdir(exist_ok=True)
    for i in range(3000):
        (folder / f"{i}").touch()


@damage()
def bury(victim: Victim) -> None:
    """A file below more folders than a recursive walk survives, and at the end of the longest path there is."""
    here, room = os.open(victim.path, os.O_RDONLY), 4000 - len(os.fsencode(victim.path))
    for _ in range(room // 2 if victim.random.random() < 0.5 else room):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(os.open("bottom", os.O_CREAT, dir_fd=here))
    os.close(here)


# Things that are not files


def _vacated(victim: Victim) -> Path:
    file = victim.file()
    file.unlink()
    return file


@damage()
def folder_instead(victim: Victim) -> None:
    _vacated(victim).mkdir()


@damage()
def link_inside(victim: Victim) -> None:
    """To a copy of the very file, so that its digest is right."""
    file = victim.file()
    file.rename(victim.path / "copy")
    file.symlink_to(victim.path / "copy")


@damage()
def link_outside(victim: Victim) -> None:
    """To the very file, so that its digest is right."""
    file = victim.file()
    file.rename(victim.outside / "moved")
    file.symlink_to(victim.outside / "moved")


@damage()
def link_to_secret(victim: Victim) -> None:
    _vacated(victim).symlink_to(victim.random.choice([victim.outside / "secret", Path("../outside/secret")]))


@damage()
def link_to_system(victim: Victim) -> None:
    _vacated(victim).symlink_to(victim.random.choice(["/etc/passwd", "/proc/self/mem", "/dev/zero", "/dev/stdin"]))


@damage()
def link_to_itself(victim: Victim) -> None:
    file = _vacated(victim)
    file.symlink_to(file.name)


@damage()
def folder_outside(victim: Victim) -> None:
    folder = victim.path / "test_data"
    if not folder.is_dir():
        raise Inapplicable
    folder.rename(victim.outside / "test_data")
    folder.symlink_to(victim.outside / "test_data")


@damage()
def folder_loop(victim: Victim) -> None:
    (victim.path / "test_data" / "again").symlink_to(victim.path)


@damage()
def pipe(victim: Victim) -> None:
    os.mkfifo(_vacated(victim))


@damage()
def more_pipes(victim: Victim) -> None:
    os.mkfifo(victim.path / "pipe")


@damage()
def unix_socket(victim: Victim) -> None:
    file = _vacated(victim)
    here = Path.cwd()
    os.chdir(file.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(file.name)
    finally:
        os.chdir(here)


@damage()
def device(victim: Victim) -> None:
    """/dev/zero and /dev/full never end; not everybody may make one."""
    file = _vacated(victim)
    try:
        os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, victim.random.choice([3, 5, 7])))
    except PermissionError:
        os.mkfifo(file)
