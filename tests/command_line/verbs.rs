//! Verbs: those that there are, those that were meant, and Docker's words.

use std::fs;
use std::process::Command;

use support::cli::{Place, is_root, run};

use crate::{on_a_terminal, um};

/// A place with a store, which has the image `demo:1`, its other name `localhost/web:1`, and another image without a name.
fn shop() -> Place {
    let place = Place::new();
    fs::write(place.at("a/f"), "of demo\n").unwrap();
    um(&place, "import -c 'LABEL kind=base' -c 'CMD [\"sh\"]' a demo:1").ok();
    um(&place, "tag demo:1 localhost/web:1").ok();
    fs::write(place.at("b/g"), "nameless\n").unwrap();
    um(&place, "import b").ok();
    place
}

#[test]
fn a_verb_that_there_is_not_is_told_and_which_was_meant() {
    let place = Place::new();
    for (line, says) in [
        ("explian mnt/f", "no verb \"explian\"; did you mean explain?"),
        ("explian --json mnt/f", "did you mean explain?"),
        ("umuont mnt", "did you mean umount?"),
        ("stats --help", "did you mean status?"),
        ("frobnicate", "no verb \"frobnicate\"; unionmount help lists them"),
        ("help ruun", "did you mean run?"),
        ("image inspec x", "did you mean inspect?"),
        ("container frob", "no verb \"frob\" of container; see unionmount container --help"),
        ("man explian", "did you mean explain?"),
        // What is there is a mount point whose layers were forgotten.
        ("mnt", "no lower layer given"),
        // Verbs of engines: what does it instead.
        ("logs web", "podman logs"),
        ("image build .", "buildah build"),
        ("container stop web", "podman stop"),
        ("search demo", "unionmount tags"),
        ("compose up", "podman"),
    ] {
        um(&place, line).refused(2, &[says]);
    }
    // Whoever mounts may call the mount point as he likes.
    if is_root() {
        for name in ["build", "explian"] {
            place.mkdir(name);
            um(&place, &format!("{name} -o lowerdir=a")).ok();
            place.umount(name);
            um(&place, &format!("--lower a {name}")).ok();
            place.umount(name);
        }
    }
    assert!(!place.at("store").exists(), "a question makes no store");
}

#[test]
fn the_help_that_tells_more_is_the_verbs_own() {
    let place = Place::new();
    for (line, says) in [
        ("run --frob x", "see unionmount run --help"),
        ("image ls --frob", "see unionmount image ls --help"),
        ("--frob --lower a mnt", "see unionmount --help"),
        ("run -d demo:1", "podman run -d works over this program"),
        ("run -dit demo:1", "-d is no option here"),
        ("create -p 80:80 demo:1", "--net host"),
        ("run --restart=always demo:1", "systemd-run"),
    ] {
        let code = if line.starts_with("run") { 125 } else { 2 };
        let ended = um(&place, line).refused(code, &[says]);
        assert!(!ended.err.contains("as a value"), "{ended:?}");
    }
    // The tip is of use where it is right.
    fs::write(place.at("-q"), "").unwrap();
    um(&place, "explain -q").refused(2, &["use '-- -q'", "see unionmount explain --help"]);
}

/// Who asks for what there is not learns how to see what there is.
#[test]
fn what_is_called_nothing_is_told_with_what_lists() {
    let place = shop();
    for (line, lists) in [
        ("inspect nosuch", "unionmount images"),
        ("image inspect nosuch", "unionmount images"),
        ("container inspect nosuch", "unionmount ps -a"),
        ("history nosuch", "unionmount images"),
        ("tag nosuch x", "unionmount images"),
        ("rmi nosuch", "unionmount images"),
        ("image diff demo:1 nosuch", "unionmount images"),
        ("image tree nosuch", "unionmount images"),
        ("images --filter since=nosuch", "unionmount images"),
        ("save nosuch", "unionmount images"),
        ("unpack nosuch", "unionmount images"),
        ("push nosuch", "unionmount images"),
        ("layers nosuch", "unionmount images"),
        ("explain nosuch /f", "unionmount images"),
        ("explain nosuch:/f", "unionmount images"),
        ("mount nosuch mnt", "unionmount images"),
        ("cp nosuch:/f .", "unionmount ps -a"),
        ("diff nosuch", "unionmount ps -a"),
        ("commit nosuch x:1", "unionmount ps -a"),
        ("export nosuch", "unionmount ps -a"),
        ("rename nosuch b", "unionmount ps -a"),
        ("rm nosuch", "unionmount ps -a"),
        ("umount nosuch", "unionmount status"),
        ("status nosuch", "unionmount status"),
        ("trace nosuch", "unionmount status"),
    ] {
        let ended = um(&place, line);
        assert!(ended.code != Some(0) && ended.err.contains(lists), "{line}: {ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{line}: {ended:?}");
    }
}

#[test]
fn help_has_a_page_and_groups_and_every_verb() {
    let place = Place::new();
    for line in ["-h", "help"] {
        let seen = on_a_terminal(&place, 80, &format!("./unionmount {line}"));
        assert_eq!(seen.code, Some(0));
        assert!(seen.out.lines().count() <= 24, "{}", seen.out);
        for part in ["unionmount demo", "See  ", "Images  ", "Containers  ", "Other  ", "--lower"] {
            assert!(seen.out.contains(part), "{part} is not in {}", seen.out);
        }
    }
    // Of a verb as well: what is rare, and what is told at length, is for --help.
    let seen = on_a_terminal(&place, 80, "./unionmount run -h");
    assert_eq!(seen.code, Some(0));
    assert!(seen.out.lines().count() <= 24, "{}", seen.out);
    assert!(seen.out.contains("--volume") && seen.out.contains("see more with '--help'"), "{}", seen.out);
    assert!(!seen.out.contains("--cap-add"), "{}", seen.out);
    let long = um(&place, "run --help").ok().out;
    assert!(long.contains("--cap-add") && long.contains("--volume <SOURCE:TARGET[:ro]>"), "{long}");
    for line in ["help trace", "trace --help"] {
        assert!(um(&place, line).ok().out.contains("Kinds of events:"), "{line}");
    }
    assert!(!um(&place, "trace -h").ok().out.contains("Kinds of events:"));
    let nothing_given = um(&place, "image");
    assert!(nothing_given.code == Some(2) && nothing_given.err.lines().count() <= 24, "{nothing_given:?}");
    let long = um(&place, "--help").ok().out;
    for part in ["\nSee:\n  demo ", "\nContainers:\n  create ", "EXIT STATUS"] {
        assert!(long.contains(part), "{long}");
    }
    assert!(um(&place, "help run").ok().out.starts_with("Run a command in a new container"));
    assert!(um(&place, "help image ls").ok().out.contains("Usage: unionmount image ls"));
    let version = um(&place, "version").ok().out;
    assert_eq!(version, um(&place, "--version").ok().out);
    let lines = |columns: u16| {
        let seen = on_a_terminal(&place, columns, "./unionmount --help");
        assert_eq!(seen.code, Some(0), "{seen:?}");
        seen.out.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    let wider = |lines: &[String], columns: usize| {
        lines.iter().filter(|line| line.chars().count() > columns).cloned().collect::<Vec<_>>()
    };
    let (narrow, usual, wide) = (lines(60), lines(80), lines(200));
    // It takes the room that there is, and no more.
    assert!(!wider(&wide, 120).is_empty() && wider(&usual, 76).len() > 3, "{usual:#?} {wide:#?}");
    assert_eq!((wider(&usual, 80), wider(&wide, 200)), (vec![], vec![]));
    // A line of an example, which is to be copied, is what it is.
    for line in wider(&narrow, 60) {
        assert!(usual.contains(&line), "it could have been broken: {line}");
    }
}

#[test]
fn dockers_nouns_do_what_they_do_there() {
    let place = shop();
    let same = |one: &str, other: &str| {
        let (one, other) = (um(&place, one).ok().out, um(&place, other).ok().out);
        assert!(!one.is_empty());
        assert_eq!(one, other);
    };
    same("image ls -q", "images -q");
    same("image inspect demo:1", "inspect demo:1");
    same("image history -q demo:1", "history -q demo:1");
    same("image ls --format '{{.Repository}}'", "images --format '{{.Repository}}'");
    um(&place, "container create --name web demo:1").ok();
    same("container inspect web", "inspect --type container web");
    same("container ls -aq", "ps -aq");
    same("container list --all -q", "ps -aq");
    // A container is no image, and the other way round.
    um(&place, "image inspect web").refused(1, &["web"]);
    um(&place, "container inspect demo:1").refused(1, &["demo:1"]);
    let id = um(&place, "ps -aq").ok().out.trim().to_owned();
    um(&place, &format!("container commit -a='A. U. Thor' -m 'why it is so' {id} new:1")).ok();
    let history = um(&place, "image history new:1 --format '{{.Comment}}'").ok().out;
    assert_eq!(history.lines().next(), Some("why it is so"));
    let author = um(&place, "image inspect -f '{{.Author}}' new:1").ok().out;
    assert_eq!(author, "A. U. Thor\n");
    um(&place, "image tag new:1 new:2").ok();
    um(&place, "image save -o new.tar new:2").ok();
    um(&place, "image rm new:1 new:2").ok();
    assert_eq!(um(&place, "image load -i new.tar").ok().out, "Loaded image: new:2\n");
    let df = um(&place, "system df").ok().out;
    assert!(df.contains("Images       3       1"), "{df}");
    um(&place, "container rm web").ok();
    um(&place, "image prune -f").ok();
    assert_eq!(um(&place, "images -f dangling=true -q").ok().out, "");
}

#[test]
fn options_of_all_verbs_stand_before_them_too() {
    let place = shop();
    for line in ["--root store images -q", "--root=store image ls -q", "images -q --root store"] {
        let out = place.sh(&format!("./unionmount {line}")).ok().out;
        assert_eq!(out.lines().count(), 2, "{line}: {out}");
    }
    place.sh("./unionmount --root store").refused(2, &["--root"]);
    for (line, told) in [
        ("--root store explian x", "did you mean explain?"),
        ("--root=store logs web", "logs is no verb here"),
        ("--root store nosuch", "there is no verb \"nosuch\""),
    ] {
        place.sh(&format!("./unionmount {line}")).refused(2, &[told]);
    }
    assert!(place.sh("./unionmount --root store help run").ok().out.contains("unionmount run"));
}

#[test]
fn all_go_that_may() {
    let place = shop();
    um(&place, "create --name one demo:1").ok();
    um(&place, "create --name two demo:1").ok();
    // One image is needed, by its two names; the other goes.
    let ended = um(&place, "rmi -a");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("Deleted: ") && ended.err.contains("is needed by container"), "{ended:?}");
    assert_eq!(um(&place, "ps -aq").ok().out.lines().count(), 2);
    assert_eq!(um(&place, "rm --all").ok().out.lines().count(), 2);
    assert_eq!(um(&place, "ps -aq").ok().out, "");
    um(&place, "rmi -a").ok();
    assert_eq!(um(&place, "images -q").ok().out, "");
    um(&place, "rm -a").ok();
    um(&place, "rm -a one").refused(2, &["--all"]);
    um(&place, "rm").refused(2, &["CONTAINER"]);
    um(&place, "create --pull never --name one nothing").refused(1, &["nothing"]);
}

#[test]
fn containers_that_do_nothing_are_pruned() {
    let place = shop();
    um(&place, "create --name one demo:1").ok();
    let out = um(&place, "container prune -f").ok().out;
    assert!(out.ends_with("Removed 1 container: 0 B freed\n"), "{out}");
    assert_eq!(um(&place, "ps -aq").ok().out, "");
    um(&place, "container prune").ok();
}

#[test]
fn nothing_is_pruned_unasked() {
    let place = shop();
    um(&place, "create --name one demo:1").ok();
    let there = || (um(&place, "ps -aq").ok().out, um(&place, "images -q").ok().out);
    let before = there();
    // Nobody is there who could be asked, whatever comes down the pipe.
    for line in ["container prune", "prune", "image prune -a", "system prune"] {
        um(&place, line).refused(2, &["no terminal", "--force"]);
        let piped = run(Command::new("sh")
            .args(["-c", &format!("echo y | ./unionmount --root store {line}")])
            .current_dir(place.path()));
        piped.refused(2, &["no terminal", "--force"]);
        assert_eq!(there(), before, "{line}");
    }
    for (answer, left) in [("n", true), ("", true), ("y", false)] {
        let seen = on_a_terminal(
            &place,
            80,
            &format!(
                "(echo '{answer}') | script -qefc './unionmount --root store container prune' /dev/null"
            ),
        );
        assert!(seen.out.contains("Delete 1 container, 0 B?"), "{seen:?}");
        assert_eq!(um(&place, "ps -aq").ok().out.is_empty(), !left, "{seen:?}");
    }
}

#[test]
fn what_is_in_use_is_not_pruned_and_the_others_go_though_one_cannot() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = shop();
    for name in ["elsewhere", "stuck", "idle"] {
        um(&place, &format!("create --name {name} demo:1")).ok();
    }
    // On a mount point of the user's own, where only the upper's lock tells of it.
    um(&place, "mount elsewhere mnt").ok();
    let dir = |name: &str| {
        let id = um(&place, &format!("inspect --type container -f '{{{{.Id}}}}' {name}")).ok().out;
        place.at("store/containers").join(id.trim())
    };
    let (stuck, idle) = (dir("stuck"), dir("idle"));
    fs::write(stuck.join("diff/kept"), "").unwrap();
    place.sh(&format!("chattr +i {}", stuck.join("config.json").display())).ok();
    let ended = um(&place, "container prune -f");
    place.sh(&format!("chattr -i {}", stuck.join("config.json").display())).ok();
    let id = idle.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!((ended.code, ended.out), (Some(1), format!("{id}\nRemoved 1 container: 0 B freed\n")));
    assert!(ended.err.contains("config.json: cannot remove it"), "{}", ended.err);
    assert_eq!(um(&place, "ps -a --format '{{.Names}}'").ok().out, "stuck\nelsewhere\n");
    assert!(place.at("mnt/f").exists());
    place.umount("mnt");
    place.wait_for_no_daemon();
}

#[test]
fn filters() {
    let place = shop();
    let images = |filter: &str| {
        um(&place, &format!("images --format '{{{{.Repository}}}}:{{{{.Tag}}}}' {filter}")).ok().out
    };
    let both = "demo:1\nlocalhost/web:1\n";
    for (filter, shown) in [
        ("--filter dangling=true", "<none>:<none>\n"),
        ("-f dangling=false", both),
        ("-f label=kind", both),
        ("-f label=kind=base", both),
        ("-f label=kind=other", ""),
        ("-f reference=demo", "demo:1\n"),
        ("-f 'reference=*:1'", both),
        ("-f reference=web:1", "localhost/web:1\n"),
        ("-f 'reference=d?mo' -f 'reference=web'", both),
        ("-f since=demo:1", "<none>:<none>\n"),
        ("-f label=kind -f before=demo:1", ""),
        ("web:1", "localhost/web:1\n"),
        ("web", "localhost/web:1\n"),
        ("demo:2", ""),
    ] {
        let mut lines: Vec<String> = images(filter).lines().map(|line| format!("{line}\n")).collect();
        lines.sort();
        assert_eq!(lines.concat(), shown, "{filter}");
    }
    um(&place, "images -f colour=red").refused(2, &["colour", "dangling", "reference"]);
    um(&place, "images -f dangling=maybe").refused(2, &["true or false"]);
    um(&place, "create --name first -l tier=web demo:1").ok();
    um(&place, "create --name second demo:1").ok();
    let names = |filter: &str| um(&place, &format!("ps -a --format '{{{{.Names}}}}' {filter}")).ok().out;
    for (filter, shown) in [
        ("-f name=fir", "first\n"),
        ("-f label=tier=web", "first\n"),
        ("-f status=created", "second\nfirst\n"),
        ("-f status=exited", ""),
        ("-f ancestor=web:1", "second\nfirst\n"),
        ("-f since=first", "second\n"),
        ("-f before=second", "first\n"),
    ] {
        assert_eq!(names(filter), shown, "{filter}");
    }
    um(&place, "ps -f status=asleep").refused(2, &["created"]);
}

#[test]
fn the_newest_ones_are_of_those_that_are_asked_for() {
    let place = shop();
    for name in ["first", "second", "third"] {
        um(&place, &format!("create --name {name} demo:1")).ok();
    }
    let names = |line: &str| um(&place, &format!("ps {line} --format '{{{{.Names}}}}'")).ok().out;
    assert_eq!(names("-n 2"), "third\nsecond\n");
    assert_eq!(names("-n 1 --filter name=first"), "first\n");
    assert_eq!(names("-n 0"), "");
    assert_eq!(names("-l --filter before=third"), "second\n");
}

#[test]
fn a_container_is_unmounted_by_its_name() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = shop();
    um(&place, "create --name web demo:1").ok();
    let at = um(&place, "mount web").ok().out.trim().to_owned();
    assert!(fs::metadata(format!("{at}/f")).is_ok());
    um(&place, "umount web").ok();
    assert!(fs::metadata(format!("{at}/f")).is_err());
    // A mount point goes before a name.
    um(&place, "mount web mnt").ok();
    um(&place, "unmount mnt").ok();
    um(&place, "mount demo:1 mnt").ok();
    um(&place, "container umount demo:1").ok();
    assert!(place.mounted("mnt").is_none());
    um(&place, "umount web").refused(1, &["mounted nowhere"]);
    // What else is called so is in nobody's way.
    um(&place, "mount web").ok();
    place.mkdir("web");
    um(&place, "umount ./web").refused(1, &["no mount of unionmount"]);
    um(&place, "umount web").ok();
    um(&place, "umount web").refused(1, &["mounted nowhere"]);
    um(&place, "umount a").refused(1, &["no mount of unionmount"]);
    um(&place, "umount nothing").refused(1, &["nothing"]);
    place.wait_for_no_daemon();
}

#[test]
fn a_question_makes_no_store() {
    let place = Place::new();
    // Each is understood, and answered from what there is.
    for line in ["images", "images -q", "ps -a", "verify", "prune -f", "rm -a", "system df"] {
        um(&place, line).ok();
        assert!(!place.at("store").exists(), "{line}");
    }
    for line in [
        "layers nosuch",
        "inspect x",
        "history x",
        "tag x y",
        "save x",
        "rmi x",
        "rm x",
        "diff x",
        "commit x",
        "mount x",
        "create --pull never x",
    ] {
        um(&place, line).refused(1, &["no store", "unionmount load"]);
        assert!(!place.at("store").exists(), "{line}");
    }
    um(&place, "umount x").refused(1, &["x: No such file"]);
    assert!(!place.at("store").exists(), "umount");
    um(&place, "import a x:1").ok();
    assert!(place.at("store").exists(), "it is looked for in the wrong place");
}

#[test]
fn containers_have_names_and_get_others() {
    let place = shop();
    for _ in 0..2 {
        um(&place, "create --pull never demo:1").ok();
    }
    let names = um(&place, "ps -a --format '{{.Names}}'").ok().out;
    let by_chance: Vec<&str> = names.lines().collect();
    assert!(by_chance.iter().all(|name| name.contains('_')) && by_chance[0] != by_chance[1], "{names}");
    um(&place, &format!("rename {} web", by_chance[0])).ok();
    um(&place, &format!("container rename {} db", by_chance[1])).ok();
    um(&place, "inspect --type container web").ok();
    um(&place, "rename db web").refused(1, &["taken"]);
    um(&place, "rename db 'a b'").refused(1, &["can't be a container's name"]);
    um(&place, "rename nobody x").refused(1, &["nobody"]);
    um(&place, &format!("create --pull never --name {} demo:1", by_chance[0])).ok();
}

#[test]
fn a_container_is_exported_as_one_tree() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = shop();
    um(&place, "create --pull never --name web demo:1").ok();
    let at = um(&place, "mount web").ok().out.trim().to_owned();
    fs::write(format!("{at}/new"), "made in it\n").unwrap();
    fs::write(format!("{at}/f"), "changed\n").unwrap();
    let mounted = um(&place, "export web | tar -tf - | sort").ok().out;
    assert!(fs::metadata(format!("{at}/new")).is_ok(), "it stays mounted");
    um(&place, "umount web").ok();
    um(&place, "export -o web.tar web").ok();
    place.sh("mkdir out; tar -C out -xf web.tar").ok();
    // Beside what it is made of there is what is mounted over when it runs.
    assert!(["f", "new", "proc"].iter().all(|name| place.names("out").iter().any(|there| there == name)));
    assert_eq!(fs::read(place.at("out/f")).unwrap(), b"changed\n");
    assert_eq!(mounted, place.sh("tar -tf web.tar | sort").ok().out);
    um(&place, "container export nobody").refused(1, &["nobody"]);
    // And back.
    um(&place, "import web.tar back:1").ok();
    um(&place, "rm web").ok();
    place.wait_for_no_daemon();
}
