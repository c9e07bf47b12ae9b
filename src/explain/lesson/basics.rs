//! The first lesson: copy-on-write, seen on disk.

use super::course::Shown::{AsRoot, Run};
use super::course::{Course, Effect, Step};

/// The first lesson.
pub const BASICS: Course = Course {
    name: "basics",
    prepare: "ln base/srv/one base/srv/two",
    steps: &[
        Step {
            name: "layers",
            right: 2,
            commands: &[
                Run("find base app patch -type f | sort"),
                Run("cat app/etc/app.conf"),
                Run("cat patch/etc/app.conf"),
            ],
            ..Step::NONE
        },
        Step {
            name: "mount",
            right: 3,
            commands: &[
                Run("mkdir rw merged"),
                Run("unionmount --lower patch:app:base --upper rw merged"),
                Run("ls -C merged/etc merged/srv merged/usr/lib"),
                Run("cat merged/etc/app.conf merged/srv/app.txt merged/etc/os"),
                Run("ls -A rw"),
            ],
            ..Step::NONE
        },
        Step {
            name: "write",
            right: 1,
            commands: &[
                Run("echo 'Today: soup' >> merged/etc/motd"),
                Run("cat merged/etc/motd"),
                Run("cat base/etc/motd"),
                Run("unionmount explain merged/etc/motd"),
            ],
            upper: Some("rw"),
            effects: &[Effect::CopyUp("etc/motd", "base")],
            ..Step::NONE
        },
        Step {
            name: "byte",
            right: 3,
            commands: &[
                Run("printf y | dd of=merged/usr/lib/library.so bs=1 seek=1000000 conv=notrunc status=none"),
                Run("du -k rw/usr/lib/library.so"),
                Run("mkdir rwb blocks && unionmount --lower base --upper rwb -o lazy=keep blocks"),
                Run("printf y | dd of=blocks/usr/lib/library.so bs=1 seek=1000000 conv=notrunc status=none"),
                Run("du -k rwb/usr/lib/library.so"),
                Run("UNMOUNT blocks"),
            ],
            upper: Some("rw"),
            effects: &[Effect::CopyUp("usr/lib/library.so", "base")],
            says: &["\trw/usr/lib/library.so", "\trwb/usr/lib/library.so"],
        },
        Step {
            name: "delete",
            commands: &[
                Run("rm merged/etc/os"),
                Run("ls merged/etc"),
                Run("ls -l rw/etc"),
                Run("cat base/etc/os"),
            ],
            upper: Some("rw"),
            effects: &[Effect::Whiteout("etc/os", "base"), Effect::CopyUp("etc/motd", "base")],
            ..Step::NONE
        },
        Step {
            name: "opaque",
            commands: &[
                Run("ls merged/srv/site"),
                Run("rm -r merged/srv/site"),
                Run("mkdir merged/srv/site"),
                Run("echo 'a new page' > merged/srv/site/new.html"),
                Run("ls merged/srv/site"),
                Run("unionmount explain merged/srv/site"),
            ],
            upper: Some("rw"),
            effects: &[Effect::Opaque("srv/site"), Effect::New("srv/site/new.html")],
            ..Step::NONE
        },
        Step {
            name: "rename",
            commands: &[
                Run("mv merged/srv/music merged/srv/songs"),
                Run("cat merged/srv/songs/song"),
                Run("ls -A rw/srv/songs"),
                Run("unionmount explain merged/srv/songs"),
            ],
            upper: Some("rw"),
            effects: &[Effect::Redirect("srv/songs"), Effect::Whiteout("srv/music", "base")],
            ..Step::NONE
        },
        Step {
            name: "chmod",
            commands: &[Run("chmod 600 merged/srv/app.txt"), Run("ls -l app/srv/app.txt rw/srv/app.txt")],
            upper: Some("rw"),
            effects: &[Effect::CopyUp("srv/app.txt", "app")],
            ..Step::NONE
        },
        Step {
            name: "links",
            commands: &[
                Run("ls -l merged/srv/one merged/srv/two"),
                Run("echo 'one line more' >> merged/srv/one"),
                Run("cat merged/srv/two"),
                Run("ls -l rw/srv"),
            ],
            upper: Some("rw"),
            effects: &[Effect::CopyUp("srv/one", "base")],
            says: &["one line more"],
            ..Step::NONE
        },
        Step {
            name: "work",
            commands: &[Run("ls -A"), Run("ls -A .rw.work")],
            says: &[".rw.work"],
            ..Step::NONE
        },
        Step {
            name: "containers",
            commands: &[
                Run("mkdir rw2 merged2"),
                Run("unionmount --lower patch:app:base --upper rw2 merged2"),
                Run("echo second > merged2/etc/name"),
                Run("cat merged2/etc/motd"),
                Run("du -sk merged merged2"),
                Run("du -sck base app patch rw rw2"),
            ],
            upper: Some("rw2"),
            effects: &[Effect::New("etc/name")],
            ..Step::NONE
        },
        Step {
            name: "commit",
            commands: &[
                Run("UNMOUNT merged"),
                Run("mkdir rw3 merged3"),
                Run("unionmount --lower rw:patch:app:base --upper rw3 merged3"),
                Run("cat merged3/etc/motd"),
                Run("ls merged3/etc merged3/srv/site"),
            ],
            ..Step::NONE
        },
        Step {
            name: "kernel",
            commands: &[
                Run("mkdir krw kwork kernel"),
                AsRoot(
                    "mount -t overlay overlay -o lowerdir=patch:app:base,upperdir=krw,workdir=kwork kernel",
                ),
                AsRoot("rm kernel/etc/os && echo 'Today: soup' >> kernel/etc/motd"),
                AsRoot("ls -l krw/etc"),
                AsRoot("umount kernel"),
            ],
            ..Step::NONE
        },
    ],
};
