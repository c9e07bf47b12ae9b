//! The first lesson: copy-on-write, seen on disk.

use super::course::{Course, Effect, Shown, Step};

/// The first lesson.
pub const BASICS: Course = Course {
    name: "basics",
    prepare: "",
    steps: &[
        Step {
            name: "layers",
            right: 2,
            commands: &[
                Shown::Run("find base app patch -type f | sort"),
                Shown::Run("cat app/etc/app.conf"),
                Shown::Run("cat patch/etc/app.conf"),
            ],
            upper: None,
            effects: &[],
        },
        Step {
            name: "mount",
            right: 3,
            commands: &[
                Shown::Run("mkdir rw merged"),
                Shown::Run("unionmount --lower patch:app:base --upper rw merged"),
                Shown::Run("find merged -type f | sort"),
                Shown::Run("cat merged/etc/app.conf merged/srv/app.txt merged/etc/os"),
                Shown::Run("ls -A rw"),
            ],
            upper: None,
            effects: &[],
        },
        Step {
            name: "write",
            right: 1,
            commands: &[
                Shown::Run("echo 'Today: soup' >> merged/etc/motd"),
                Shown::Run("cat merged/etc/motd"),
                Shown::Run("cat base/etc/motd"),
                Shown::Run("unionmount explain merged/etc/motd"),
            ],
            upper: Some("rw"),
            effects: &[Effect::CopyUp("etc/motd", "base")],
        },
        Step {
            name: "delete",
            right: 0,
            commands: &[
                Shown::Run("rm merged/etc/os"),
                Shown::Run("ls merged/etc"),
                Shown::Run("ls -l rw/etc"),
                Shown::Run("cat base/etc/os"),
            ],
            upper: Some("rw"),
            effects: &[Effect::Whiteout("etc/os", "base"), Effect::CopyUp("etc/motd", "base")],
        },
        Step {
            name: "opaque",
            right: 0,
            commands: &[
                Shown::Run("ls merged/srv/site"),
                Shown::Run("rm -r merged/srv/site"),
                Shown::Run("mkdir merged/srv/site"),
                Shown::Run("echo 'a new page' > merged/srv/site/new.html"),
                Shown::Run("ls merged/srv/site"),
                Shown::Run("unionmount explain merged/srv/site"),
            ],
            upper: Some("rw"),
            effects: &[Effect::Opaque("srv/site"), Effect::New("srv/site/new.html")],
        },
        Step {
            name: "containers",
            right: 0,
            commands: &[
                Shown::Run("mkdir rw2 merged2"),
                Shown::Run("unionmount --lower patch:app:base --upper rw2 merged2"),
                Shown::Run("echo second > merged2/etc/name"),
                Shown::Run("cat merged2/etc/motd"),
                Shown::Run("du -sk merged merged2"),
                Shown::Run("du -sck base app patch rw rw2"),
            ],
            upper: Some("rw2"),
            effects: &[Effect::New("etc/name")],
        },
        Step {
            name: "commit",
            right: 0,
            commands: &[
                Shown::Run("UNMOUNT merged"),
                Shown::Run("mkdir rw3 merged3"),
                Shown::Run("unionmount --lower rw:patch:app:base --upper rw3 merged3"),
                Shown::Run("cat merged3/etc/motd"),
                Shown::Run("ls merged3/etc merged3/srv/site"),
            ],
            upper: None,
            effects: &[],
        },
        Step {
            name: "kernel",
            right: 0,
            commands: &[
                Shown::Run("mkdir krw kwork kernel"),
                Shown::AsRoot(
                    "mount -t overlay overlay -o lowerdir=patch:app:base,upperdir=krw,workdir=kwork kernel",
                ),
                Shown::AsRoot("rm kernel/etc/os && echo 'Today: soup' >> kernel/etc/motd"),
                Shown::AsRoot("ls -l krw/etc"),
                Shown::AsRoot("umount kernel"),
            ],
            upper: None,
            effects: &[],
        },
    ],
};
