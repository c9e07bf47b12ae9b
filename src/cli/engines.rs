//! What container engines have and this program doesn't, and the command that does it instead: it has no daemon that keeps
//! containers running, no networks, no builds; podman has all that, over this program.

/// Returns what to do instead of a verb of other programs.
pub(super) fn instead_of(verb: &str) -> Option<&'static str> {
    VERBS.iter().find(|(verbs, _)| verbs.contains(&verb)).map(|(_, instead)| *instead)
}

/// Returns what to do instead of an option of other engines' `run` and `create`.
pub(super) fn instead_of_option(verb: &str, option: &str) -> Option<&'static str> {
    let option = option.split('=').next().unwrap_or(option);
    let of_containers = matches!(verb, "run" | "create" | "exec");
    OPTIONS
        .iter()
        .find(|(options, _)| of_containers && options.contains(&option))
        .map(|(_, instead)| *instead)
}

const VERBS: [(&[&str], &str); 18] = [
    (&["search"], "registries are not searched; unionmount tags NAME lists what there is of one name"),
    (
        &["build", "buildx", "builder", "bake"],
        "use buildah build -t NAME ., then buildah push NAME oci-archive:FILE and unionmount load FILE; or unionmount \
         create, mount and commit",
    ),
    (&["manifest"], "use podman manifest; unionmount load takes the image for this machine out of a list"),
    (
        &["start", "restart", "unpause"],
        "a container runs once, in the foreground: unionmount run; its files go on by unionmount mount NAME, or as a \
         new container by commit and run; podman start with podman over this program (docs/engines.md)",
    ),
    (
        &["stop", "kill"],
        "end unionmount run by Ctrl-C or by a signal to it, or unionmount rm -f NAME; podman stop with podman over this \
         program (docs/engines.md)",
    ),
    (&["pause"], "use unionmount commit -p to hold a container still while it is read; else podman pause"),
    (
        &["logs"],
        "what a container says goes where unionmount run's output goes: unionmount run … > FILE; podman logs with \
         podman over this program (docs/engines.md)",
    ),
    (
        &["attach"],
        "containers run in the foreground of unionmount run; podman attach with podman over this program (docs/engines.md)",
    ),
    (&["wait"], "unionmount run ends with its command, and with its status"),
    (&["top"], "use ps -ef --forest; inspect -f '{{.State.Pid}}' NAME tells the container's first process"),
    (
        &["port", "network"],
        "networks of containers are podman's, over this program (docs/engines.md); here unionmount run --net none, \
         private or host",
    ),
    (
        &["volume"],
        "name a directory: unionmount run -v DIR:/data; named volumes are podman's, over this program (docs/engines.md)",
    ),
    (&["update"], "limits are given to unionmount run: -m, --cpus, --ulimit"),
    (&["events"], "use unionmount trace MOUNT for what happens in a mount"),
    (&["info"], "use unionmount system df for the store, unionmount status for mounts"),
    (
        &[
            "compose", "stack", "service", "swarm", "node", "secret", "config", "pod", "play", "kube",
            "generate", "machine",
        ],
        "several containers together are podman's, over this program (docs/engines.md)",
    ),
    (&["context", "plugin", "trust", "checkpoint"], "there is no daemon here, and nothing to set up for one"),
    (&["healthcheck"], "health checks are podman's, over this program (docs/engines.md)"),
];

const OPTIONS: [(&[&str], &str); 9] = [
    (
        &["-d", "--detach"],
        "commands run in the foreground; the shell's & puts them behind, and podman run -d works over this \
         program (docs/engines.md)",
    ),
    (
        &["-p", "--publish", "-P", "--publish-all", "--expose", "--ip", "--network-alias", "--link"],
        "ports and networks of containers are podman's, over this program (docs/engines.md); --net host shows the \
         container the host's network",
    ),
    (&["--restart"], "a container runs once; systemd-run -p Restart=always unionmount run … starts it again"),
    (&["--device"], "give --privileged for all devices, or -v /dev/NAME:/dev/NAME as an ordinary user"),
    (&["--volumes-from"], "name the directories: -v DIR:/data"),
    (&["--security-opt"], "use --seccomp FILE|none, --cap-add, --cap-drop or --privileged"),
    (&["--log-driver", "--log-opt"], "what the container says goes to stdout and stderr: redirect it"),
    (
        &["--health-cmd", "--health-interval", "--no-healthcheck"],
        "health checks are podman's, over this program",
    ),
    (
        &[
            "--pid",
            "--ipc",
            "--uts",
            "--userns",
            "--cgroupns",
            "--cgroup-parent",
            "--pod",
            "--gpus",
            "--shm-size",
            "--sysctl",
        ],
        "podman run has it, over this program (docs/engines.md)",
    ),
];

/// Other words for verbs, which are too far from them to be slips.
pub(super) const OTHER_WORDS: [(&str, &str); 12] = [
    ("stats", "status"),
    ("list", "images"),
    ("ls", "images"),
    ("remove", "rm"),
    ("delete", "rm"),
    ("del", "rm"),
    ("show", "inspect"),
    ("why", "explain"),
    ("tree", "layers"),
    ("tutorial", "demo"),
    ("monitor", "status"),
    ("watch", "status"),
];
