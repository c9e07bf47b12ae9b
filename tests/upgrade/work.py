"""A program that uses a mount in one way, again and again, until a file appears; any surprise ends it by an error.

work.py ROLE DIRECTORY END
"""
import fcntl, mmap, os, sqlite3, subprocess, sys

role, root, end = sys.argv[1:]
os.makedirs(f"{root}/{role}", exist_ok=True)
at = lambda name: f"{root}/{role}/{name}"


def rounds():
    """Counts from 1, until it is the end."""
    count = 0
    while True:
        count += 1
        yield count
        if os.path.exists(end):
            return


def write():
    """Appends, renames over, reads back."""
    log = open(at("log"), "a+")
    for count in rounds():
        log.write(f"{count}\n")
        log.flush()
        if count % 50 == 0:
            os.fsync(log.fileno())
        with open(at("next"), "w") as new:
            new.write(str(count))
        os.rename(at("next"), at("current"))
        assert open(at("current")).read() == str(count)
    log.seek(0)
    assert log.read().split() == [str(n + 1) for n in range(count)]
    return count


def lock():
    """Holds both kinds of lock all the time, and somebody else gets neither."""
    whole, part = open(at("whole"), "w"), open(at("part"), "w")
    fcntl.flock(whole, fcntl.LOCK_EX)
    fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
    try_both = (
        "import fcntl, sys\n"
        "for take, name in [(lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB), sys.argv[1]),"
        " (lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7), sys.argv[2])]:\n"
        "    try: take(open(name, 'r+'))\n"
        "    except BlockingIOError: continue\n"
        "    sys.exit('it got the lock of ' + name)\n"
    )
    for count in rounds():
        subprocess.run([sys.executable, "-c", try_both, at("whole"), at("part")], check=True)
    return count


def deleted():
    """Has what is deleted open: a file, a mapping, a file without a name, a directory."""
    file, mapped = open(at("gone"), "w+b"), open(at("mapped"), "w+b")
    mapped.write(bytes(8192))
    mapped.flush()
    map = mmap.mmap(mapped.fileno(), 8192)
    unnamed = os.open(f"{root}/{role}", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.mkdir(at("dir"))
    dir = os.open(at("dir"), os.O_DIRECTORY)
    os.unlink(at("gone"))
    os.unlink(at("mapped"))
    os.rmdir(at("dir"))
    number = os.fstat(file.fileno()).st_ino
    for count in rounds():
        text = str(count).encode()
        file.seek(0)
        file.write(text)
        file.flush()
        file.seek(0)
        assert file.read(len(text)) == text
        map[4096 : 4096 + len(text)] = text
        map.flush()
        assert os.pread(mapped.fileno(), len(text), 4096) == text
        os.pwrite(unnamed, text, 0)
        assert os.pread(unnamed, len(text), 0) == text
        stat = os.fstat(file.fileno())
        assert (stat.st_ino, stat.st_nlink, os.fstat(unnamed).st_nlink) == (number, 0, 0), stat
        assert not os.path.exists(at("gone"))
        os.fstat(dir)
    return count


def list_():
    """Lists a directory with many entries, slowly, while others come and go."""
    for n in range(120):
        open(at(f"entry-{n:04}"), "w").close()
    always = {f"entry-{n:04}" for n in range(120)}
    for count in rounds():
        seen = []
        for entry in os.scandir(f"{root}/{role}"):
            seen.append(entry.name)
            if len(seen) % 20 == 0:
                open(at("passing"), "w").close()
                os.unlink(at("passing"))
        assert len(seen) == len(set(seen)), "one is listed twice"
        assert always <= set(seen), always - set(seen)
    return count


def inside():
    """Works in a directory that it never names, and that somebody moves."""
    os.makedirs(at("a/b"), exist_ok=True)
    os.chdir(at("a/b"))
    number = os.stat(".").st_ino
    for count in rounds():
        os.rename(at("a"), at("c"))
        open(f"file-{count % 10}", "w").write(str(count))
        assert os.getcwd() == at("c/b")
        os.rename(at("c"), at("a"))
        assert open(f"file-{count % 10}").read() == str(count)
        assert os.stat(".").st_ino == number
    return count


def make():
    """Makes and removes every kind of entry, each exactly once; copies up."""
    for count in rounds():
        os.mkdir(at("dir"))
        os.close(os.open(at("dir/new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.link(at("dir/new"), at("linked"))
        assert os.stat(at("linked")).st_nlink == 2
        os.symlink("dir/new", at("symbolic"))
        assert os.path.samefile(at("symbolic"), at("linked"))
        for name in ["symbolic", "linked", "dir/new"]:
            os.unlink(at(name))
        os.rmdir(at("dir"))
        lower = f"{root}/below/{count % 100}"
        os.chmod(lower, 0o600 + count % 2 * 0o40)
        assert open(lower).read() == f"below {count % 100}"
    return count


def sql():
    """Commits to a database."""
    database = sqlite3.connect(at("database"), isolation_level=None)
    database.execute("create table if not exists counted (n integer primary key)")
    for count in rounds():
        database.execute("insert into counted values (?)", (count,))
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    assert database.execute("select count(*), max(n) from counted").fetchone() == (count, count)
    return count


def patch():
    """Writes here and there into a large file of a lower, by two descriptors."""
    like = bytearray(n // 4096 % 251 for n in range(4 << 20))
    files = [os.open(f"{root}/large", os.O_RDWR) for _ in range(2)]
    for count in rounds():
        where = count * 70001 % (len(like) - 20)
        text = b"%20d" % count
        os.pwrite(files[count % 2], text, where)
        like[where : where + 20] = text
        assert os.pread(files[count // 2 % 2], 8192, where // 4096 * 4096) == like[where // 4096 * 4096 :][:8192]
    assert open(f"{root}/large", "rb").read() == like
    return count


print(role, {"list": list_}.get(role, globals().get(role))())
