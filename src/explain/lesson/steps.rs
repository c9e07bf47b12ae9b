//! The steps of the lesson: which commands are shown and run, and what they do to the layers.

use super::texts::{StepTexts, Steps};

/// One step.
pub(super) struct Step {
    /// For messages.
    pub name: &'static str,
    /// What is said.
    pub texts: fn(&Steps) -> &StepTexts,
    /// What is run. `UNMOUNT` stands for `umount` or, for an ordinary user, `fusermount3 -u`.
    pub commands: &'static [&'static str],
    /// The upper whose changes are told after the commands, if any are.
    pub upper: Option<&'static str>,
    /// What must be in that upper then.
    pub effects: &'static [Effect],
}

/// What is found in an upper: a path in it, and the lower that has the path too.
#[derive(Debug)]
pub(super) enum Effect {
    CopyUp(&'static str, &'static str),
    Whiteout(&'static str, &'static str),
    Opaque(&'static str),
    New(&'static str),
}

/// The lesson.
pub(super) const STEPS: &[Step] = &[
    Step {
        name: "layers",
        texts: |steps| &steps.layers,
        commands: &["find base app patch -type f | sort", "cat app/etc/app.conf", "cat patch/etc/app.conf"],
        upper: None,
        effects: &[],
    },
    Step {
        name: "mount",
        texts: |steps| &steps.mount,
        commands: &[
            "mkdir rw merged",
            "unionmount --lower patch:app:base --upper rw merged",
            "find merged -type f | sort",
            "cat merged/etc/app.conf merged/etc/os",
            "ls -A rw",
        ],
        upper: None,
        effects: &[],
    },
    Step {
        name: "write",
        texts: |steps| &steps.write,
        commands: &[
            "echo 'Today: soup' >> merged/etc/motd",
            "cat merged/etc/motd",
            "cat base/etc/motd",
            "unionmount explain merged/etc/motd",
        ],
        upper: Some("rw"),
        effects: &[Effect::CopyUp("etc/motd", "base")],
    },
    Step {
        name: "delete",
        texts: |steps| &steps.delete,
        commands: &["rm merged/etc/os", "ls merged/etc", "ls -l rw/etc", "cat base/etc/os"],
        upper: Some("rw"),
        effects: &[Effect::Whiteout("etc/os", "base"), Effect::CopyUp("etc/motd", "base")],
    },
    Step {
        name: "opaque",
        texts: |steps| &steps.opaque,
        commands: &[
            "ls merged/srv/site",
            "rm -r merged/srv/site",
            "mkdir merged/srv/site",
            "echo 'a new page' > merged/srv/site/new.html",
            "ls merged/srv/site",
            "unionmount explain merged/srv/site",
        ],
        upper: Some("rw"),
        effects: &[Effect::Opaque("srv/site"), Effect::New("srv/site/new.html")],
    },
    Step {
        name: "containers",
        texts: |steps| &steps.containers,
        commands: &[
            "mkdir rw2 merged2",
            "unionmount --lower patch:app:base --upper rw2 merged2",
            "echo second > merged2/etc/name",
            "cat merged2/etc/motd",
            "du -sk merged merged2",
            "du -sck base app patch rw rw2",
        ],
        upper: Some("rw2"),
        effects: &[Effect::New("etc/name")],
    },
    Step {
        name: "commit",
        texts: |steps| &steps.commit,
        commands: &[
            "UNMOUNT merged",
            "mkdir rw3 merged3",
            "unionmount --lower rw:patch:app:base --upper rw3 merged3",
            "cat merged3/etc/motd",
            "ls merged3/etc merged3/srv/site",
            "unionmount layers merged3",
        ],
        upper: None,
        effects: &[],
    },
];
