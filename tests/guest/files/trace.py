"""A metadata-heavy life in a folder; prints what it sees. Whoever serves the folder may be killed meanwhile: it makes no
difference."""
import errno
import fcntl
import os
import sys

try:
    import mmap
except ImportError:
    mmap = None

os.chdir(sys.argv[1])


def say(what, *args):
    try:
        print(what.__name__, args[:1], what(*args))
    except OSError as error:
        print(what.__name__, args[:1], errno.errorcode[error.errno])


def make(name, data=b""):
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    os.write(fd, data)
    return fd


def names(path):
    return sorted(os.listdir(path))


os.mkdir("a")
held = make("a/one", b"1" * 9000)
fcntl.flock(held, fcntl.LOCK_EX)
say(make, "a/one")
os.mkdir("a/deep")
say(os.link, "a/one", "a/deep/also")
say(os.symlink, "nowhere", "a/deep/link")
for i in range(40):
    os.close(make(f"a/many{i}", str(i).encode()))
# Read in the middle: every name that was there all the time comes once.
with os.scandir("a") as folder:
    seen = [next(folder).name for _ in range(3)]
    os.unlink("a/many7")
    os.rename("a/many8", "a/deep/moved")
    os.close(make("a/new", b"n"))
    seen += [entry.name for entry in folder]
kept = [name for name in seen if name not in ("new", "many7", "many8")]
print(len(kept), len(set(kept)))
os.unlink("a/one")
os.write(held, b"2" * 5000)
os.fsync(held)
other = make("a/one", b"other")
say(os.replace, "a/one", "a/deep/also")
print(os.fstat(held).st_nlink, os.fstat(held).st_size, os.pread(held, 3, 8999))
os.rename("a/deep", "deep")
say(os.rmdir, "a")
say(os.unlink, "nothing")
say(os.truncate, "deep/also", 2)
say(os.chmod, "deep/also", 0o600)
say(os.setxattr, "deep/also", "user.colour", b"green")
say(os.getxattr, "deep/also", "user.colour")
if mmap:
    os.ftruncate(other, 8192)
    with mmap.mmap(other, 8192) as view:
        view[5000:5003] = b"map"
        view.flush()
        view[6000:6003] = b"MAP"
mine = os.open("deep/also", os.O_RDONLY)
try:
    os.ftruncate(other, 8192)
    os.pwrite(other, b"map", 5000)
    os.pwrite(other, b"MAP", 6000)
    fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("two locks")
except BlockingIOError:
    print("locked")
with open("/proc/sys/vm/drop_caches", "w") as drop:
    drop.write("3")
print(os.pread(mine, 1005, 4998).replace(b"\0", b""), names("."), names("deep"), len(names("a")), os.readlink("deep/link"))
os.close(held)
for name in names("a"):
    os.unlink("a/" + name)
say(os.rmdir, "a")
