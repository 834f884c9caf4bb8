#!/usr/bin/python3
"""Judges a mounted file system by the functions of libfuse's own test/test_examples.py: libfuse.py SRC MNT, where MNT shows SRC.

That file is unmodified. The image holds neither pytest nor libfuse's helpers for it, so these are stood in for here, and what
`test_passthrough` and `test_passthrough_hp` do with a mount is done by `CHECKS`, in their order.
"""
import contextlib
import os
import sys
import time
import types
from unittest.mock import MagicMock

CHECKS = {
    "tst_statvfs": "m", "tst_readdir": "sm", "tst_readdir_big": "sm", "tst_open_read": "sm", "tst_open_write": "sm", "tst_create": "m",
    "tst_passthrough": "sm", "tst_append": "sm", "tst_seek": "sm", "tst_mkdir": "m", "tst_rmdir": "ms", "tst_unlink": "ms",
    "tst_symlink": "m", "tst_chown": "m", "tst_utimens": "m", "tst_link": "m", "tst_truncate_path": "m", "tst_truncate_fd": "m",
    "tst_open_unlink": "m",
}


@contextlib.contextmanager
def raises(kind):
    """pytest.raises"""
    seen = types.SimpleNamespace(value=None)
    try:
        yield seen
    except kind as error:
        seen.value = error
    else:
        raise AssertionError(f"no {kind.__name__}")


def main():
    util = MagicMock(base_cmdline=[], basename="/opt/fuse3", fuse_proto=(7, 41), safe_sleep=time.sleep)
    sys.modules.update(py=MagicMock(), packaging=MagicMock(), pytest=MagicMock(raises=raises), util=util)
    sys.path.insert(0, "/opt/fuse3/test")
    import test_examples

    places = {"s": os.path.abspath(sys.argv[1]), "m": os.path.abspath(sys.argv[2])}
    for name, arguments in CHECKS.items():
        # What the file system beneath keeps of a time, as in libfuse's call.
        more = {"ns_tol": 1000} if name == "tst_utimens" else {}
        try:
            getattr(test_examples, name)(*(places[which] for which in arguments), **more)
        except (AssertionError, OSError) as error:
            line = error.__traceback__
            while line.tb_next:
                line = line.tb_next
            sys.exit(f"{name}: {error!r} at {line.tb_frame.f_code.co_filename}:{line.tb_lineno}")


main()
