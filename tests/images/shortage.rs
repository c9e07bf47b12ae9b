//! System calls that fail, one after the other, by strace: what couldn't be looked at is not broken, and nothing is lost.

use std::fs;

use serde_json::{Value, json};

use crate::lab::{Image, Lab, Tar, descriptor, gzip, sha256, three_layers};

/// A system call, how it fails, and whether it does so from then on.
type Fault = (&'static str, &'static str, bool);

/// What is short, and what fails for it.
const READING: [Fault; 10] = [
    ("openat", "EIO", false),
    ("openat", "EMFILE", true),
    ("openat", "ENFILE", true),
    ("openat2", "ENOMEM", false),
    ("read", "EIO", false),
    ("statx", "ENOMEM", false),
    ("statx", "EIO", false),
    ("newfstatat", "EIO", false),
    ("getdents64", "EIO", false),
    ("listxattr", "ENOMEM", false),
];
const WRITING: [Fault; 7] = [
    ("mkdirat", "EDQUOT", true),
    ("mkdir", "ENOSPC", true),
    ("write", "EDQUOT", true),
    ("pwrite64", "ENOSPC", true),
    ("fsync", "EIO", false),
    ("renameat", "EDQUOT", true),
    ("setxattr", "EDQUOT", true),
];

/// Runs the program with `args` for each fault at so many places of its run; `check` gets what became of each.
fn try_faults(
    lab: &Lab,
    faults: &[Fault],
    places: usize,
    args: &str,
    mut check: impl FnMut(&str, support::cli::Ended),
) {
    let mut injected = 0;
    for &(call, errno, stays) in faults {
        lab.sh(&format!("strace -f -qq -o calls -e trace={call} \"$UM\" {args}"));
        let count =
            fs::read_to_string(lab.at("calls")).unwrap().lines().filter(|line| line.contains(call)).count();
        check("undisturbed", lab.sh("true"));
        let mut tried: Vec<usize> = (0..places).map(|at| 1 + at * count / places).collect();
        tried.dedup();
        for place in tried.into_iter().filter(|&place| place <= count) {
            let when = if stays { "+" } else { "" };
            let inject = format!("-e trace={call} -e inject={call}:error={errno}:when={place}{when}");
            let ended = lab.sh(&format!("strace -f -qq -o calls {inject} \"$UM\" {args}"));
            let log = fs::read_to_string(lab.at("calls")).unwrap();
            let at = log.lines().find(|line| line.contains("INJECTED")).unwrap_or_default();
            injected += usize::from(!at.is_empty());
            check(&format!("{call} {errno} {place} of {count}: {at}"), ended);
        }
    }
    assert!(injected > 20, "hardly anything failed: the test tests nothing");
}

fn store() -> Lab {
    let lab = Lab::new();
    lab.write("a.tar", &three_layers().oci().archive());
    lab.write(
        "b.tar",
        &Image::new("b:1", vec![Tar::new().file("b", "b").bytes()]).compressed(gzip, "+gzip").oci().archive(),
    );
    lab.um(&["load", "-q", "a.tar"]).ok();
    lab.um(&["create", "--name", "one", "app:1", "sh"]).ok();
    lab
}

/// Everything in the store but what is being made.
fn kept(lab: &Lab) -> String {
    lab.out("cd store && find . -path ./tmp -prune -o ! -name '*lock' -print | LC_ALL=C sort; cat index.json containers/*/config.json")
}

#[test]
fn verify_calls_nothing_broken_that_it_could_not_see() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    let before = kept(&lab);
    let mut unchecked = 0;
    let faults = [&READING[..], &WRITING].concat();
    try_faults(&lab, &faults, 6, "verify --repair", |what, ended| {
        assert_eq!(kept(&lab), before, "{what}: {ended:?}");
        assert!(!ended.out.contains("not all is well"), "{what}: {ended:?}");
        unchecked += usize::from(ended.code == Some(3));
        match ended.code {
            // Of no consequence, or before the program was loaded.
            Some(0 | 3 | 127) => {}
            // Nothing could be written, words included.
            _ => assert!(ended.out.is_empty() && what.starts_with("write "), "{what}: {ended:?}"),
        }
        lab.out("rm -rf store/tmp/*");
    });
    assert!(unchecked > 20, "{unchecked}");
    lab.verify();
}

#[test]
fn prune_deletes_nothing_that_it_could_not_see() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    // An image for several machines, as skopeo writes it into the store: what it needs is found by way of an index.
    lab.um(&["load", "-q", "b.tar"]).ok();
    let path = lab.at("store/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let kind = "application/vnd.oci.image.index.v1+json";
    for entry in index["manifests"].as_array_mut().unwrap() {
        let annotations = entry.as_object_mut().unwrap().remove("annotations");
        let inner = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [entry.take()] }).to_string();
        lab.write(&format!("store/blobs/sha256/{}", sha256(inner.as_bytes())), inner.as_bytes());
        *entry = descriptor(kind, inner.as_bytes());
        entry["annotations"] = annotations.unwrap();
    }
    fs::write(&path, index.to_string()).unwrap();
    lab.verify();
    let before = kept(&lab);
    try_faults(&lab, &READING, 24, "prune -f", |what, ended| {
        assert_eq!(kept(&lab), before, "{what}: {ended:?}");
        lab.out("rm -rf store/tmp/*");
    });
    lab.verify();
}

#[test]
fn a_load_is_whole_or_was_not() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    let faults: Vec<Fault> = READING.iter().step_by(2).chain(&WRITING).copied().collect();
    let (mut failed, mut loaded) = (0, 0);
    try_faults(&lab, &faults, 6, "load -q b.tar", |what, ended| {
        let there = lab.images().iter().any(|line| line.starts_with("b:1 "));
        if ended.code == Some(0) && what != "undisturbed" {
            assert!(there, "{what}: {ended:?}");
        }
        failed += usize::from(!there);
        loaded += usize::from(there);
        // Leftovers in tmp are told, and are no damage.
        let verified = lab.um(&["verify"]);
        assert!(
            verified.code == Some(0) && verified.out.ends_with("all is well\n"),
            "{what}: {ended:?} {verified:?}"
        );
        if there {
            lab.um(&["rmi", "b:1"]).ok();
        }
    });
    assert!(failed > 20 && loaded > 0, "{failed} {loaded}");
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
}

#[test]
fn a_save_is_whole_or_has_failed() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    lab.um(&["save", "-o", "good.tar", "app:1"]).ok();
    let good = fs::read(lab.at("good.tar")).unwrap();
    let before = kept(&lab);
    let faults: Vec<Fault> = READING
        .into_iter()
        .chain([("write", "EDQUOT", true), ("write", "EIO", false), ("fsync", "EIO", false)])
        .collect();
    try_faults(&lab, &faults, 6, "save -o out.tar app:1", |what, ended| {
        if ended.code == Some(0) && what != "undisturbed" {
            assert!(fs::read(lab.at("out.tar")).unwrap() == good, "{what}: {ended:?}");
        }
        assert_eq!(kept(&lab), before, "{what}: {ended:?}");
        lab.out("rm -f out.tar");
    });
    lab.verify();
}

/// After a power failure a container is there with all that it is, or not at all: each name is made durable after what it
/// names, up to the directory of all containers.
#[test]
fn a_container_is_durable_when_it_is_told() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    let ended = lab.sh("strace -f -qq -y -o calls -e trace=fsync,fdatasync,syncfs,rename,renameat,renameat2 \"$UM\" create app:1 sh");
    let id = ended.ok().out.trim().to_owned();
    let containers = lab.at("store/containers");
    let containers = containers.to_str().unwrap();
    let calls = fs::read_to_string(lab.at("calls")).unwrap();
    let synced = |path: &str| format!("<{path}>)");
    let steps = [
        format!("<{containers}/{id}/.tmp"),
        format!("{containers}/{id}/config.json\""),
        synced(&format!("{containers}/{id}")),
        synced(containers),
    ];
    let mut rest = calls.as_str();
    for step in &steps {
        let at =
            rest.find(step.as_str()).unwrap_or_else(|| panic!("{step} is missing, or too early: {calls}"));
        rest = &rest[at + step.len()..];
    }
}

/// Mending that fails half-way leaves what the next one mends.
#[test]
fn mending_may_fail() {
    support::needs_root!();
    support::needs_program!("strace");
    let lab = store();
    lab.um(&["load", "-q", "b.tar"]).ok();
    let record = lab.out("ls store/containers/*/config.json");
    let upper = lab.at(&record).with_file_name("diff");
    fs::write(upper.join("mine"), "kept").unwrap();
    lab.out("cp -a store good");
    let faults: Vec<Fault> = READING.iter().step_by(2).chain(&WRITING).copied().collect();
    let names = lab.images();
    try_faults(&lab, &faults, 6, "verify --repair", |what, ended| {
        // Whatever became of it, nothing goes with the next prune, and the next try mends it.
        lab.sh("\"$UM\" prune -f");
        let again = lab.um(&["verify", "--repair"]);
        assert_eq!(again.code, Some(0), "{what}: {ended:?} {again:?}");
        assert_eq!(lab.images(), names, "{what}: {ended:?} {again:?}");
        assert_eq!(fs::read(upper.join("mine")).unwrap(), b"kept", "{what}: {ended:?}");
        assert_eq!(lab.um(&["ps", "-aq"]).ok().out.lines().count(), 1, "{what}: {ended:?}");
        lab.out(&format!(
            "rm -rf store && cp -a good store && echo broken > store/index.json && echo broken > {record}"
        ));
    });
}
