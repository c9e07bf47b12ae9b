//! `diff` on stacks and mounts.

use std::collections::BTreeMap;
use std::fs;

use support::cli::Place;
use support::skipped;

/// A stack of two lowers with a mount in which everything is changed that can be.
fn changed() -> Place {
    let place = Place::new();
    place
        .sh("set -e
            mkdir -p b/etc b/d/sub b/moved/in b/gone-and-back
            echo debian >b/etc/os; printf 'a\\nb\\nc\\n' >b/etc/conf; echo x >b/d/1; echo y >b/d/sub/2
            echo m >b/moved/in/f; echo g >b/gone-and-back/old; printf 'end' >b/no-end; ln -s os b/etc/link
            printf 'x\\n' >a/run; echo t >a/file-then-dir; mkdir a/dir-then-file; echo i >a/dir-then-file/i
            echo same >a/mode
            ./unionmount --lower a:b --upper up mnt
            printf 'a\\nB\\nc\\nd\\n' >mnt/etc/conf; rm mnt/etc/os; rm -r mnt/d; mv mnt/moved mnt/there
            echo n >mnt/there/in/new; rm -r mnt/gone-and-back; mkdir mnt/gone-and-back; echo h >mnt/gone-and-back/new
            printf 'end\\nof it' >mnt/no-end; ln -sfn conf mnt/etc/link;
            rm mnt/file-then-dir; mkdir mnt/file-then-dir; echo j >mnt/file-then-dir/j
            rm -r mnt/dir-then-file; echo k >mnt/dir-then-file; chmod 755 mnt/mode; mkfifo mnt/fifo; : >mnt/empty
            echo q >'mnt/a \"b
c'")
        .ok();
    place
}

/// The tree of a directory, by path: type and content alone.
fn tree(place: &Place, name: &str) -> BTreeMap<String, String> {
    let script = format!(
        "cd {name} && find . -mindepth 1 -printf '%y %P\\0' | while IFS= read -r -d '' line; do
           path=${{line#* }}; case $line in f*) sum=$(sha256sum <\"$path\");; l*) sum=$(readlink \"$path\");; *) sum=;; esac
           printf '%s\\t%s\\0' \"$path\" \"${{line%% *}} $sum\"; done"
    );
    let ended =
        support::cli::run(std::process::Command::new("bash").args(["-c", &script]).current_dir(place.path()));
    let (out, _) = (ended.out.clone(), ended.ok());
    out.split_terminator('\0')
        .map(|record| record.split_once('\t').map(|(path, what)| (path.to_owned(), what.to_owned())).unwrap())
        .collect()
}

#[test]
fn a_stack_and_its_mount_tell_the_same_as_a_comparison_of_both_trees() {
    support::needs_root!();
    let place = changed();
    place.sh("mkdir before && ./unionmount --lower a:b before").ok();
    let (before, after) = (tree(&place, "before"), tree(&place, "mnt"));
    let told = place.unionmount(&["diff", "mnt"]).ok().out;
    assert_eq!(told, place.unionmount(&["diff", "mnt/etc/conf"]).ok().out, "a path in it names the mount");
    let mut missing = Vec::new();
    let quoted = |path: &str| path.replace('"', "\\\"").replace('\n', "\\n");
    for path in before.keys().chain(after.keys()) {
        let letter = match (before.get(path), after.get(path)) {
            (Some(old), Some(new)) if old != new => 'C',
            (Some(_), None) => 'D',
            (None, Some(_)) => 'A',
            _ => continue,
        };
        // What is deleted with its directory is told by that.
        let above = path.rsplit_once('/').map(|(above, _)| above);
        if letter == 'D'
            && above.is_some_and(|above| !after.contains_key(above) || after[above].starts_with('f'))
        {
            continue;
        }
        let line = format!("{letter} /{}", quoted(path));
        if !told.lines().any(|known| known.replace("\\\"", "\"") == line.replace("\\\"", "\"")) {
            missing.push(line);
        }
    }
    assert!(missing.is_empty(), "{missing:?} are not in\n{told}");
    for same in ["A /there/in/f", "C /mode", "C /etc", "D /gone-and-back/old", "D /d"] {
        assert!(told.lines().any(|line| line == same), "{same} is not in\n{told}");
    }
    for unchanged in ["/run", "/moved/in", "/d/1", "/d/sub"] {
        assert!(!told.lines().any(|line| line.ends_with(unchanged)), "{unchanged} is in\n{told}");
    }
    place.umount("mnt");
    support::cli::until("its daemon ends", || place.daemons().len() == 1);
    for args in [&["diff", "up", "a", "b"][..], &["diff", "--lower", "a:b", "--upper", "up"]] {
        assert_eq!(place.unionmount(args).ok().out, told, "{args:?}");
    }
    let json = place.unionmount(&["diff", "--json", "up", "a", "b"]).ok().out;
    assert_eq!(json.matches("\"path\":").count(), told.lines().count());
    for part in [
        r#"{"path":"/d","change":"deleted","type":"directory"}"#,
        r#"{"path":"/dir-then-file","change":"changed","type":"file"}"#,
        r#"{"path":"/fifo","change":"added","type":"fifo"}"#,
    ] {
        assert!(json.contains(part), "{part} is not in {json}");
    }
}

#[test]
fn a_patch_makes_the_lower_what_the_mount_shows() {
    support::needs_root!();
    if !support::is_installed("git") {
        return skipped("no git");
    }
    let place = changed();
    place
        .sh("set -e; mkdir flat; cp -a b/. flat/; cp -a a/. flat/; ./unionmount diff -p mnt >patch
             cd flat; git apply ../patch; mkfifo fifo; mkdir -p d/sub moved/in
             rmdir d/sub d moved/in moved; printf '\\0\\2\\3' >../mnt/data")
        .ok();
    let (patched, mut shown) = (tree(&place, "flat"), tree(&place, "mnt"));
    assert!(shown.remove("data").is_some());
    assert_eq!(patched, shown);
    assert!(fs::read_to_string(place.at("patch")).unwrap().contains("old mode 100644\nnew mode 100755\n"));
    let stat = place.unionmount(&["diff", "--stat", "mnt"]).ok().out;
    for line in ["/etc/conf | +2 -1", "/data | 0 B -> 3 B", "/d/sub/2 | +0 -1", "/dir-then-file/i | +0 -1"] {
        assert!(stat.lines().any(|told| told == line), "{line} is not in\n{stat}");
    }
}

#[test]
fn what_cannot_be_compared_is_said_in_one_line() {
    support::needs_root!();
    let place = Place::new();
    place.sh("./unionmount --lower a mnt").ok();
    place.unionmount(&["diff", "mnt"]).refused(1, &["has no upper"]);
    place.unionmount(&["diff", "./up"]).refused(1, &["name what lies below it too"]);
    place.unionmount(&["diff", "up", "none"]).refused(1, &["none: cannot be opened as a layer"]);
    place.unionmount(&["diff"]).refused(2, &["CONTAINER|MOUNT|UPPER"]);
    place.umount("mnt");
    place.sh("cp -a /etc/passwd a/; ./unionmount --lower a --upper up a").ok();
    place.unionmount(&["diff", "a"]).refused(1, &["covered by the mount"]);
}
