//! What a terminal would obey, and what turns the direction of reading, from names and texts of others: it is escaped
//! wherever it is printed.

use std::fs;

use crate::{Bed, Success, lacking};
use support::cli::{until, wait};

/// A title, a bell, a colour in one byte (C1), a turn of direction, and a line break that could forge a line.
const HOSTILE: &str = "a\x1b]0;t\x07\nD /etc/shadow\u{9b}31m\u{202e}b";

#[track_caller]
fn is_tame(what: &str, text: &str) {
    let wild = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(wild), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("D /etc/shadow")), "{what}: a forged line in {text:?}");
}

#[test]
fn nothing_of_an_image_or_a_layer_commands_the_terminal() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let label = format!("LABEL {}", serde_json::json!(format!("key={HOSTILE}")));
    bed.um(&["import", "-m", HOSTILE, "-c", &label, "image.tar", "hostile"]).success();
    bed.um(&["create", "--name", "caged", "hostile", "sh", "-c", HOSTILE]).ok();
    // As far as the program has labels.
    bed.um(&["create", "--name", "labelled", "--label", &format!("x={HOSTILE}"), "hostile", "true"]);
    let at = bed.um(&["mount", "caged"]).ok().out.trim().to_owned();
    fs::write(format!("{at}/{}", HOSTILE.replace('/', "_")), "").unwrap();
    fs::write(format!("{at}/plain 你"), "").unwrap();

    let diff = bed.um(&["diff", "caged"]).ok().out;
    is_tame("diff", &diff);
    assert_eq!(diff.lines().count(), 2, "{diff:?}");
    assert!(diff.contains("A /plain 你\n"), "{diff:?}");
    for args in [
        &["history", "hostile"][..],
        &["history", "--no-trunc", "hostile"],
        &["history", "--format", "{{.Comment}}\t{{.CreatedBy}}", "hostile"],
        &["history", "--format", "json", "hostile"],
        &["inspect", "hostile"],
        &["inspect", "caged"],
        &["inspect", "--format", "{{.Config.Labels}}", "hostile"],
        &["inspect", "--format", "{{json .Config}}", "hostile"],
        &["ps", "-a"],
        &["ps", "-a", "--no-trunc"],
        &["ps", "-a", "--format", "{{.Command}} {{.Labels}}"],
        &["ps", "-a", "--format", "json"],
        &["images"],
    ] {
        let ended = bed.um(args).ok();
        is_tame(&format!("{args:?}"), &ended.out.replace('\t', " "));
    }
    // What JSON says is what was said.
    let told: serde_json::Value = serde_json::from_str(&bed.um(&["inspect", "caged"]).ok().out).unwrap();
    assert_eq!(told[0]["Args"][1], HOSTILE);
    let json = bed.um(&["inspect", "--format", "{{json .Args}}", "caged"]).ok().out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()[1], HOSTILE);
    // Errors too, whoever chose the name in them.
    for args in
        [&["tag", "hostile", HOSTILE][..], &["load", HOSTILE], &["inspect", HOSTILE], &["rm", HOSTILE]]
    {
        let ended = bed.um(args);
        assert_ne!(ended.code, Some(0), "{args:?}");
        assert_eq!(ended.err.matches('\n').count(), 1, "{ended:?}");
        is_tame(&format!("{args:?}"), &ended.err);
    }
    bed.um(&["rm", "-f", "caged"]).ok();
}

/// The same as the name of a file, and one that isn't text: a colour in one byte.
fn hostile_names() -> Vec<std::ffi::OsString> {
    let text = HOSTILE.replace('/', "_");
    vec![text.into(), std::os::unix::ffi::OsStringExt::from_vec(b"raw\x9b31m\xff\x1bc".to_vec())]
}

/// What a program printed, byte for byte.
struct Printed {
    what: String,
    code: Option<i32>,
    streams: Vec<Vec<u8>>,
}

impl Printed {
    #[track_caller]
    fn is_tame(&self) {
        for bytes in &self.streams {
            let text = std::str::from_utf8(bytes).unwrap_or_else(|_| panic!("{}: {bytes:?}", self.what));
            is_tame(&self.what, &text.replace('\t', " "));
        }
    }
}

impl Bed {
    fn printed<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(&self, args: &[S]) -> Printed {
        let mut command = std::process::Command::new(self.place.bin());
        let out = self.prepare(command.args(args)).stdin(std::process::Stdio::null()).output().unwrap();
        Printed { what: format!("{args:?}"), code: out.status.code(), streams: vec![out.stdout, out.stderr] }
    }

    /// An image archive, as a directory, in which the image's name is hostile.
    fn layout_with_hostile_name(&self, image: &str) -> String {
        self.um(&["save", "-o", "saved.tar", image]).success();
        self.sh("mkdir layout && tar -C layout -xf saved.tar").ok();
        let at = self.place.at("layout/index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&at).unwrap()).unwrap();
        let names = serde_json::json!({ "org.opencontainers.image.ref.name": HOSTILE, "x": HOSTILE });
        index["manifests"][0]["annotations"] = names;
        fs::write(at, index.to_string()).unwrap();
        fs::remove_file(self.place.at("layout/manifest.json")).unwrap_or_default();
        "layout".into()
    }
}

/// All verbs that show what an image, a container, or its layers say.
#[test]
fn no_verb_prints_what_an_image_says_as_it_is() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    for name in hostile_names() {
        fs::write(bed.place.at("image/tmp").join(&name), "").unwrap();
        let link = bed.place.at("image/data").join(&name);
        std::os::unix::fs::symlink(&name, &link).unwrap();
    }
    bed.sh("cd image && tar -C . -cf ../hostile.tar .").ok();
    let quoted = serde_json::json!(HOSTILE).to_string();
    let changes = [
        format!("LABEL {}", serde_json::json!(format!("{HOSTILE}={HOSTILE}"))),
        format!("ENV X={quoted}"),
        format!("CMD [{quoted}]"),
        format!("WORKDIR {quoted}"),
        format!("USER {quoted}"),
    ];
    let mut import = vec!["import", "-m", HOSTILE];
    changes.iter().for_each(|change| import.extend(["-c", change.as_str()]));
    import.extend(["hostile.tar", "hostile"]);
    bed.um(&import).success();
    let env = format!("E={HOSTILE}");
    let label = format!("x={HOSTILE}");
    bed.um(&["create", "--name", "caged", "hostile", HOSTILE]).success();
    // As far as the program has labels.
    bed.um(&["create", "--name", "labelled", "-e", &env, "-l", &label, "hostile", HOSTILE]);
    let at = bed.um(&["mount", "caged"]).success().out.trim().to_owned();
    for name in hostile_names() {
        fs::write(std::path::Path::new(&at).join("etc").join(&name), "").unwrap();
        fs::remove_file(std::path::Path::new(&at).join("tmp").join(&name)).unwrap();
    }
    let layout = bed.layout_with_hostile_name("hostile");
    let mut said: Vec<Printed> = [
        &["commit", "-a", HOSTILE, "-m", HOSTILE, "caged", "committed"][..],
        &["commit", "caged", HOSTILE],
        &["load", &layout],
        &["load", "-i", HOSTILE],
        &["import", HOSTILE, "x"],
        &["import", "hostile.tar", HOSTILE],
        &["import", "-c", HOSTILE, "hostile.tar", "x"],
        &["tag", "hostile", HOSTILE],
        &["tag", HOSTILE, "x"],
        &["save", "-o", "/dev/null", HOSTILE],
        &["images"],
        &["images", "--format", "json"],
        &["images", HOSTILE],
        &["history", "committed"],
        &["history", "--no-trunc", "committed"],
        &["history", "--format", "json", "committed"],
        &["history", HOSTILE],
        &["inspect", "committed", "caged", "labelled"],
        &["inspect", "--format", "{{.}}", "committed"],
        &["inspect", "--format", "{{.Author}} {{.Comment}} {{.Config}}", "committed"],
        &["inspect", "--format", "{{json .}}", "caged"],
        &["inspect", "--format", HOSTILE, "caged", "x"],
        &["ps", "-a"],
        &["ps", "-a", "--no-trunc", "--format", "json"],
        &["ps", "-a", "--filter", HOSTILE],
        &["diff", "caged"],
        &["diff", HOSTILE],
        &["layers", "committed"],
        &["layers", "--all", "committed"],
        &["layers", "--tree", "--all", "caged"],
        &["image", "tree"],
        &["image", "tree", "--json"],
        &["image", "diff", "bb", "committed"],
        &["explain", "committed", "/"],
        &["explain", "caged", HOSTILE],
        &["cp", HOSTILE, "caged:/"],
        &["cp", "caged:/nosuch", HOSTILE],
        &["cp", HOSTILE, HOSTILE],
        &["exec", "caged", HOSTILE],
        &["layers", "--json", "--all", "committed"],
        &["layers", "--waste", "committed"],
        &["layers", "--ci", "--max-waste", "0%", "committed"],
        &["layers", HOSTILE],
        &["explain", HOSTILE],
        &["mount", HOSTILE, "mnt"],
        &["mount", "hostile", HOSTILE],
        &["create", "--name", HOSTILE, "hostile"],
        &["create", "-v", HOSTILE, "hostile"],
        &["run", "--rm", HOSTILE],
        &["run", "--rm", "hostile"],
        &["run", "--rm", "-u", HOSTILE, "bb", "true"],
        &["run", "--rm", "-w", HOSTILE, "bb", HOSTILE],
        &["rm", HOSTILE],
        &["rmi", HOSTILE],
        &["verify"],
        &["prune", "-f"],
        &["status"],
        &["umount", HOSTILE],
        &[HOSTILE],
        &["--lower", HOSTILE, "mnt"],
        &["-o", HOSTILE, "mnt"],
    ]
    .iter()
    .map(|args| bed.printed(args))
    .collect();
    said.push(bed.printed(&["rm", "-f", "caged"]));
    said.iter().for_each(Printed::is_tame);
    let works = |verb: &str| {
        assert!(said.iter().any(|ran| ran.what.contains(verb) && ran.code == Some(0)), "{verb} never worked");
    };
    ["commit", "images", "history", "inspect", "ps", "diff", "layers", "verify", "rm"]
        .into_iter()
        .for_each(works);
}

/// All verbs that show a mount, and its log, with hostile names of layers, of files, of attributes and of links.
#[test]
fn no_verb_prints_what_a_layer_says_as_it_is() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    for name in hostile_names() {
        let dir = |what: &str| {
            let mut of = std::ffi::OsString::from(format!("{what}-"));
            of.push(&name);
            let path = bed.place.at(of);
            fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, mnt) = (dir("lower"), dir("upper"), dir("mnt"));
        fs::create_dir(lower.join("d")).unwrap();
        fs::write(lower.join(&name), "below").unwrap();
        fs::write(lower.join("gone"), "").unwrap();
        std::os::unix::fs::symlink(&name, lower.join("link")).unwrap();
        // What isn't believed is told in the log.
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(lower.join(&name), "user.overlay.metacopy", b"", flags).unwrap();
        rustix::fs::setxattr(lower.join("d"), "user.overlay.redirect", b"/\x1b]0;t\x07", flags).unwrap();
        let log = bed.place.at("log");
        let mut mount = std::process::Command::new(bed.place.bin());
        mount.args(["-vvv", "--log-file"]).arg(&log).arg("--lower").arg(&lower);
        mount.arg("--upper").arg(&upper).arg(&mnt);
        crate::run(bed.prepare(&mut mount)).ok();

        let listen = |json: bool| {
            let mut command = std::process::Command::new(bed.place.bin());
            command.arg("trace").args(json.then_some("--json")).arg(&mnt);
            let out = fs::File::create(bed.place.at(format!("traced-{json}"))).unwrap();
            bed.prepare(&mut command).stdout(out).spawn().unwrap()
        };
        let mut listeners = [listen(false), listen(true)];
        let traced = |json: bool| fs::read(bed.place.at(format!("traced-{json}"))).unwrap();
        let mut n = 0;
        until("both listen", || {
            n += 1;
            fs::write(mnt.join(format!("seen-{n}")), "").unwrap();
            [false, true].iter().all(|json| !traced(*json).is_empty())
        });
        fs::OpenOptions::new().append(true).open(mnt.join(&name)).unwrap();
        let mut renamed = name.clone();
        renamed.push("2");
        fs::rename(mnt.join(&name), mnt.join(&renamed)).unwrap();
        fs::create_dir(mnt.join("d").join(&name)).unwrap();
        fs::remove_file(mnt.join("gone")).unwrap();
        let mut attribute = std::ffi::OsString::from("user.");
        attribute.push(&name);
        rustix::fs::setxattr(mnt.join(&renamed), &attribute, name.as_encoded_bytes(), flags).unwrap();
        fs::remove_file(mnt.join(&renamed)).unwrap();

        let os = std::ffi::OsString::from;
        let mut said = Vec::new();
        for args in [
            vec![os("status")],
            vec![os("status"), os("--json")],
            vec![os("status"), mnt.clone().into()],
            vec![os("layers"), mnt.clone().into()],
            vec![os("layers"), os("--tree"), os("--all"), mnt.clone().into()],
            vec![os("layers"), os("--all"), mnt.clone().into()],
            vec![os("layers"), os("--json"), os("--all"), mnt.clone().into()],
            vec![os("layers"), os("--waste"), mnt.clone().into()],
            vec![os("explain"), mnt.join("link").into(), mnt.join("d").join(&name).into()],
            vec![os("explain"), os("--json"), mnt.join("link").into(), mnt.join("d").into()],
            vec![os("explain"), os("--lower"), lower.clone().into(), name.clone()],
        ] {
            let printed = bed.printed(&args);
            assert_eq!(printed.code, Some(0), "{args:?}: {:?}", String::from_utf8_lossy(&printed.streams[1]));
            said.push(printed);
        }
        for args in [
            vec![os("explain"), mnt.join("none").join(&name).into()],
            vec![os("explain"), mnt.join(&name).into(), mnt.join("gone").into()],
            vec![os("--lower"), lower.join(&name).into(), mnt.clone().into()],
            vec![
                os("--lower"),
                lower.clone().into(),
                os("--upper"),
                upper.clone().into(),
                bed.place.at("mnt").into(),
            ],
            vec![os("umount"), lower.clone().into()],
            vec![os("umount"), mnt.clone().into()],
        ] {
            said.push(bed.printed(&args));
        }
        if support::mounted_at(&mnt).is_some() {
            support::run("umount", &[&mnt]);
        }
        for listener in &mut listeners {
            wait(listener);
        }
        bed.place.wait_for_no_daemon();
        let file =
            |what: &str, bytes: Vec<u8>| Printed { what: what.into(), code: None, streams: vec![bytes] };
        said.push(file("trace", traced(false)));
        said.push(file("trace --json", traced(true)));
        let logged = fs::read(&log).unwrap();
        assert!(
            String::from_utf8_lossy(&logged).contains("is not believed"),
            "{}",
            String::from_utf8_lossy(&logged)
        );
        said.push(file("the log", logged));
        said.iter().for_each(Printed::is_tame);
        fs::remove_file(log).unwrap();
    }
}
