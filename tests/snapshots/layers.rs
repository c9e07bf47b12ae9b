//! Layers that come and go while programs use the mount.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use support::cli::Place;
use support::{Fields, Mount, Options, Program, Snapshot};

use crate::{build, change, mount, numbers, printed, unmount};

/// A layer that adds, hides, replaces and deletes.
fn build_third(place: &Place, dir: &str) {
    for sub in ["d/e", "d/from-c", "tree", "own/deep"] {
        fs::create_dir_all(place.at(dir).join(sub)).unwrap();
    }
    for file in ["changed", "d/kept", "d/e/c", "own/deep/f", "tree/only", "new"] {
        fs::write(place.at(dir).join(file), format!("{dir}/{file}")).unwrap();
    }
    place.sh(&format!(
        "mknod {dir}/deleted c 0 0 && mknod {dir}/d/deleted c 0 0 && setfattr -n trusted.overlay.opaque -v y {dir}/tree && \
         mknod {dir}/replaced c 0 0"
    ))
    .ok();
}

/// A place with the layers `a`, `b` and `c`, mounted by those words.
fn mounted(words: &[&str]) -> Place {
    let place = Place::new();
    build(&place);
    build_third(&place, "c");
    mount(&place, words);
    place
}

/// What the kernel shows of those layers, the upper among them.
fn oracle(place: &Place, layers: &[&str]) -> Snapshot {
    let kernel = Options {
        lowers: layers.iter().map(|layer| place.at(layer)).collect(),
        extra: vec!["redirect_dir=follow".into(), "xino=on".into()],
        ..Options::default()
    };
    fs::create_dir_all(place.at("oracle")).unwrap();
    let kernel = Mount::with_program(&Program::Kernel, &kernel, &place.at("oracle"));
    let taken = Snapshot::take(kernel.path());
    kernel.unmount();
    taken
}

fn assert_shows(place: &Place, layers: &[&str]) {
    let fields = Fields { nlink: false, directory_mtime: false, ..Fields::tree() };
    crate::assert_same(&oracle(place, layers), &place.at("mnt"), &fields, &layers.join(":"));
}

/// All that the kernel can keep: contents, listings, names that are missing.
fn look(root: &Path) {
    Snapshot::take(root);
    for missing in ["new", "own", "deleted", "tree/only", "d/from-c", "d/e/c", "tree/deep", "nowhere"] {
        drop(fs::symlink_metadata(root.join(missing)));
    }
}

fn layers_of(place: &Place) -> Vec<String> {
    let status: serde_json::Value =
        serde_json::from_str(&printed(place.unionmount(&["status", "--json", "mnt"]))).unwrap();
    let layers = status["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_mount_shows_the_layers_that_it_has_now_wherever_they_come_and_go() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    fs::write(root.join("written"), "before").unwrap();
    fs::remove_file(root.join("mode")).unwrap();
    look(&root);
    let before = numbers(&root);
    let steps: [(&[&str], &[&str]); 7] = [
        (&["add", "c", "mnt"], &["up", "c", "a", "b"]),
        (&["remove", "c", "mnt"], &["up", "a", "b"]),
        (&["add", "--below", "1", "c", "mnt"], &["up", "a", "c", "b"]),
        (&["remove", "2", "mnt"], &["up", "a", "b"]),
        (&["add", "--bottom", "c", "mnt"], &["up", "a", "b", "c"]),
        (&["remove", "a", "mnt"], &["up", "b", "c"]),
        (&["add", "--above", "b", "a", "mnt"], &["up", "a", "b", "c"]),
    ];
    for (words, layers) in steps {
        look(&root);
        place.unionmount(&[&["layers"], words].concat()).ok();
        assert_shows(&place, layers);
        assert_eq!(layers_of(&place), layers);
        let told = printed(place.unionmount(&["explain", "mnt/changed"]));
        let shown = layers.iter().position(|layer| place.at(layer).join("changed").exists()).unwrap();
        assert!(told.contains(&format!("layer {shown} ({})", layers[shown])), "{told}");
        assert_eq!(fs::read_to_string(root.join("written")).unwrap(), "before");
    }
    place.unionmount(&["layers", "remove", "c", "mnt"]).ok();
    assert_eq!(numbers(&root), before, "what was there all the time has its number");
    // It is written to as before, over what is below now.
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    change_now(&root);
    assert_shows(&place, &["up", "c", "a", "b"]);
    place.unionmount(&["layers", "remove", "c", "mnt"]).ok();
    assert_shows(&place, &["up", "a", "b"]);
    unmount(&place);
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    assert_shows(&place, &["up", "a", "b"]);
    unmount(&place);
}

fn change_now(root: &Path) {
    fs::write(root.join("changed"), "written over c").unwrap();
    fs::write(root.join("own/deep/f"), "also").unwrap();
    fs::remove_file(root.join("d/kept")).unwrap();
    fs::remove_dir_all(root.join("tree")).unwrap();
    fs::create_dir(root.join("tree")).unwrap();
    fs::write(root.join("tree/here"), "here").unwrap();
}

#[test]
fn programs_go_on_with_what_stays() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    let root = place.at("mnt");
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(root.join(name)).unwrap();
    let mut lower = File::open(root.join("kept")).unwrap();
    let mut written = open("mode");
    written.write_all(b"first").unwrap();
    let mut gone = File::create_new(root.join("gone")).unwrap();
    gone.write_all(b"deleted and open").unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    let (number, dir) = (lower.metadata().unwrap().ino(), fs::metadata(root.join("d")).unwrap().ino());
    // Its working directory has another topmost layer with each step.
    let inside = place.sh(&format!(
        "cd mnt/d/e && exec python3 -c '
import mmap, os, subprocess, sys
file = open(\"map\", \"w+b\"); file.write(b\"a\" * 4096); file.flush()
map = mmap.mmap(file.fileno(), 4096); map[:6] = b\"before\"
listing = os.scandir(\"../..\"); first = [next(listing).name]
number = os.stat(\".\").st_ino
def layers(*words): subprocess.run([\"{}\", \"layers\", *words], check=True)
layers(\"add\", \"../../../c\", \"../..\")
assert os.path.exists(\"c\") and os.stat(\".\").st_ino == number
rest = [entry.name for entry in listing]
assert len(set(first + rest)) == len(first + rest)
assert not {{\"kept\", \"mode\", \"link\", \"names\"}} - set(first + rest), rest
map[:6] = b\"after \"; map.flush()
open(\"there\", \"w\").close()
layers(\"remove\", \"1\", \"../..\")
assert not os.path.exists(\"c\") and os.path.exists(\"there\") and os.stat(\".\").st_ino == number
assert bytes(map[:6]) == b\"after \"
print(os.getcwd())
'",
        place.bin().display()
    ));
    assert_eq!(printed(inside).trim(), root.join("d/e").display().to_string());
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    let mut text = String::new();
    lower.read_to_string(&mut text).unwrap();
    gone.seek(SeekFrom::Start(0)).unwrap();
    gone.read_to_string(&mut text).unwrap();
    assert_eq!(text, "b/keptdeleted and open");
    written.write_all(b", second").unwrap();
    assert_eq!(fs::read_to_string(root.join("mode")).unwrap(), "first, second");
    assert_eq!(fs::metadata(root.join("kept")).unwrap().ino(), number);
    assert_eq!(fs::metadata(root.join("d")).unwrap().ino(), dir);
    assert_eq!(numbers(&root)["d"], dir, "a listing tells the same");
    drop((lower, written, gone));
    unmount(&place);
}

#[test]
fn what_is_in_use_is_not_taken_away_unless_by_force() {
    support::needs_root!();
    let place = mounted(&["--lower", "c:a:b", "--upper", "up"]);
    let root = place.at("mnt");
    let own = std::process::id().to_string();
    let (of_c, hidden) = (File::open(root.join("new")).unwrap(), File::open(root.join("kept")).unwrap());
    of_c.read_exact_at(&mut [0; 3], 0).unwrap();
    place
        .unionmount(&["layers", "remove", "c", "mnt"])
        .refused(1, &["/new", &own, "--force", "stay as they are"]);
    assert_eq!(fs::read_to_string(root.join("changed")).unwrap(), "c/changed");
    fs::write(place.mkdir("x").join("kept"), "x/kept").unwrap();
    place.unionmount(&["layers", "add", "x", "mnt"]).refused(1, &["/kept", &own, "--force"]);
    // Where it hides nothing it may come.
    place.unionmount(&["layers", "add", "--bottom", "x", "mnt"]).ok();
    place.unionmount(&["layers", "remove", "x", "mnt"]).ok();
    place.unionmount(&["layers", "remove", "--force", "c", "mnt"]).ok();
    place.unionmount(&["layers", "add", "--force", "x", "mnt"]).ok();
    for stale in [&of_c, &hidden] {
        assert_eq!(stale.read_at(&mut [0; 3], 0).unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
        assert_eq!(stale.metadata().unwrap_err().kind(), ErrorKind::StaleNetworkFileHandle);
    }
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "x/kept");
    assert_shows(&place, &["up", "x", "a", "b"]);
    // A working directory that would be gone, in a directory that is gone.
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    place
        .sh(&format!(
            "cd mnt/own/deep && {} layers remove 1 ../.. 2>&1 | grep -q 'own/deep (.* sh' && cat f",
            place.bin().display()
        ))
        .ok();
    drop((of_c, hidden));
    unmount(&place);
}

#[test]
fn who_can_not_be_looked_at_may_use_what_would_be_gone() {
    support::needs_root!();
    let place = mounted(&["--lower", "c:a:b", "--upper", "up"]);
    look(&place.at("mnt"));
    place.mkdir("x");
    // Root without this right sees nobody who has it.
    let blind = |words: &str| {
        place.sh(&format!("setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace ./unionmount {words}"))
    };
    blind("layers remove c mnt").refused(1, &["can't be looked at", "--force", "stay as they are"]);
    assert_eq!(fs::read_to_string(place.at("mnt/changed")).unwrap(), "c/changed");
    blind("layers add --bottom x mnt").ok();
    blind("layers remove x mnt").ok();
    place.unionmount(&["snapshot", "mnt", "one"]).ok();
    blind("rollback mnt").refused(1, &["can't be looked at", "--force"]);
    blind("layers remove --force c mnt").ok();
    assert_shows(&place, &["up", ".up.layers/1", "a", "b"]);
    unmount(&place);
}

#[test]
fn what_is_mounted_in_it_stays_where_it_can_and_is_not_detached_else() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("other"), "other").unwrap();
    place.sh("mkdir tmp && mount --bind other mnt/kept && mount -t tmpfs none mnt/d/e && echo own >mnt/d/e/own").ok();
    let is_there = || {
        assert_eq!(fs::read_to_string(place.at("mnt/kept")).unwrap(), "other");
        assert_eq!(fs::read_to_string(place.at("mnt/d/e/own")).unwrap(), "own\n");
        assert_eq!(support::mounts_below(&place.at("mnt")).len(), 3);
    };
    is_there();
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    is_there();
    assert_eq!(fs::read_to_string(place.at("mnt/changed")).unwrap(), "c/changed");
    place.unionmount(&["layers", "remove", "c", "mnt"]).ok();
    is_there();
    fs::write(place.mkdir("x").join("kept"), "x/kept").unwrap();
    place.unionmount(&["layers", "add", "x", "mnt"]).refused(1, &["mnt/kept", "mounted", "detached"]);
    is_there();
    place.sh("umount mnt/kept mnt/d/e").ok();
    // In a mount namespace of its own, as engines have them.
    let script = format!(
        "exec 3<>ready && mount --bind other mnt/kept && ! {} layers add x mnt 2>said",
        place.bin().display()
    );
    place.sh(&format!("mkfifo ready && unshare --mount sh -c '{script}' && grep -q detached said")).ok();
    place
        .sh(&format!(
            "mkfifo held go && {{ unshare --mount sh -c 'mount --bind other mnt/kept && echo >held && cat go && cat mnt/kept >seen' & }} && \
             cat held && ! {0} layers add x mnt 2>said-too && {0} layers add c mnt && echo >go && wait && \
             grep -q 'as process' said-too && grep -q other seen",
            place.bin().display()
        ))
        .ok();
    unmount(&place);
}

#[test]
fn a_layer_that_files_of_the_upper_need_stays() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b:c", "--upper", "up", "-o", "metacopy=on"]);
    let root = place.at("mnt");
    place.sh("chmod 600 mnt/kept && chmod 600 mnt/new").ok();
    place.unionmount(&["layers", "remove", "b", "mnt"]).refused(1, &["/kept", "seal"]);
    fs::write(place.mkdir("x").join("kept"), "x/kept").unwrap();
    place.unionmount(&["layers", "add", "x", "mnt"]).refused(1, &["/kept", "seal"]);
    place.unionmount(&["layers", "remove", "a", "mnt"]).ok();
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "b/kept");
    unmount(&place);
    place.unionmount(&["seal", "--lower", "b:c", "--upper", "up"]).ok();
    mount(&place, &["--lower", "b:c", "--upper", "up", "-o", "metacopy=on"]);
    place.unionmount(&["layers", "remove", "b", "mnt"]).ok();
    assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "b/kept");
    unmount(&place);
}

#[test]
fn numbers_stay_when_a_filesystem_comes_between() {
    support::needs_root!();
    let place = Place::new();
    build(&place);
    place.sh("mkdir t u && mount -t tmpfs none t && mount -t tmpfs none u").ok();
    build_third(&place, "t/c");
    fs::create_dir_all(place.at("u/d")).unwrap();
    fs::write(place.at("u/in-u"), "u").unwrap();
    fs::write(place.at("u/d/in-u"), "u").unwrap();
    mount(&place, &["--lower", "a:u:b", "--upper", "up"]);
    let root = place.at("mnt");
    fs::write(root.join("in-u"), "copied up").unwrap();
    let before = numbers(&root);
    let held = File::open(root.join("d/in-u")).unwrap();
    for _ in 0..2 {
        place.unionmount(&["layers", "add", "--above", "a", "t/c", "mnt"]).ok();
        let now = numbers(&root);
        for path in ["in-u", "d", "d/in-u", "kept", "names/1", "link"] {
            assert_eq!(now[path], before[path], "{path}");
        }
        place.unionmount(&["layers", "remove", "t/c", "mnt"]).ok();
        assert_eq!(numbers(&root), before);
    }
    assert_eq!(held.metadata().unwrap().ino(), before["d/in-u"]);
    drop(held);
    unmount(&place);
    mount(&place, &["--lower", "a:u:b", "--upper", "up"]);
    assert_eq!(numbers(&root), before, "in the next mount");
    unmount(&place);
    place.sh("umount t u").ok();
}

#[test]
fn snapshots_record_the_layers_that_there_are() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    change(&place.at("mnt"));
    place.unionmount(&["snapshot", "mnt", "one"]).ok();
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    // Between what was frozen of the upper and the upper there is no place.
    place.unionmount(&["layers", "add", "--above", "1", "c", "mnt"]).refused(1, &["snapshot of the upper"]);
    place.unionmount(&["layers", "remove", "1", "mnt"]).refused(1, &["snapshot of the upper"]);
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    assert_shows(&place, &["up", ".up.layers/1", "c", "a", "b"]);
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    assert_shows(&place, &["up", ".up.layers/1", "a", "b"]);
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    place.unionmount(&["snapshot", "mnt", "two"]).ok();
    place.unionmount(&["layers", "remove", "b", "mnt"]).ok();
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    assert_shows(&place, &["up", ".up.layers/2", ".up.layers/1", "c", "a", "b"]);
    place.unionmount(&["layers", "remove", "a", "mnt"]).ok();
    place.unionmount(&["rollback", "mnt", "one"]).ok();
    assert_shows(&place, &["up", ".up.layers/1", "c", "b"]);
    unmount(&place);
}

#[test]
fn what_can_not_be_recorded_is_asked_for_by_the_next_mount() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    fs::write(place.at("mnt/changed"), "changed").unwrap();
    place.unionmount(&["snapshot", "mnt", "one"]).ok();
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    place.sh("tar -C c -cf c.tar new").ok();
    // What was refused has changed nothing.
    place.unionmount(&["layers", "add", "a", "mnt"]).refused(1, &["already"]);
    place.unionmount(&["layers", "add", "c.tar", "mnt"]).ok();
    fs::write(place.at("mnt/mode"), "changed").unwrap();
    place.unionmount(&["snapshot", "mnt", "two"]).ok();
    unmount(&place);
    place.unionmount(&["--upper", "up", "mnt"]).refused(1, &["--lower"]);
    mount(&place, &["--lower", "c.tar:a:b", "--upper", "up"]);
    assert_eq!(fs::read_to_string(place.at("mnt/new")).unwrap(), "c/new");
    place.unionmount(&["layers", "remove", "3", "mnt"]).ok();
    fs::write(place.at("mnt/mode"), "changed again").unwrap();
    place.unionmount(&["snapshot", "mnt", "three"]).ok();
    unmount(&place);
    mount(&place, &["--upper", "up"]);
    assert_shows(&place, &["up", ".up.layers/3", ".up.layers/2", ".up.layers/1", "a", "b"]);
    unmount(&place);
}

#[test]
fn what_can_not_be_a_layer_is_refused_with_the_reason() {
    support::needs_root!();
    let place = mounted(&["--lower", "a", "--upper", "up"]);
    let add = |dir: &str| place.unionmount(&["layers", "add", dir, "mnt"]);
    add("a").refused(1, &["layer 1 of the mount already"]);
    add("up").refused(1, &["layer 0 of the mount already"]);
    add("up/..").refused(1, &["the mount lies in it"]);
    add("mnt").refused(1, &["lies in the mount"]);
    add("nowhere").refused(1, &["nowhere"]);
    place.unionmount(&["layers", "remove", "a", "mnt"]).refused(1, &["only layer"]);
    place.unionmount(&["layers", "remove", "0", "mnt"]).refused(1, &["the upper"]);
    place.unionmount(&["layers", "remove", "7", "mnt"]).refused(1, &["no layer 7", "status"]);
    place.unionmount(&["layers", "add", "c", "mnt/d"]).refused(2, &["name the mount itself"]);
    fs::create_dir_all(place.at("up/inside")).unwrap();
    add("up/inside").refused(1, &["upper"]);
    unmount(&place);
    // Without an upper, and with an archive.
    mount(&place, &["--lower", "a:b"]);
    place.sh("tar -C c -cf c.tar --xattrs --xattrs-include='*' new own").ok();
    add("c.tar").ok();
    assert_eq!(fs::read_to_string(place.at("mnt/own/deep/f")).unwrap(), "c/own/deep/f");
    place.unionmount(&["layers", "remove", "1", "mnt"]).ok();
    add("c").ok();
    assert_shows(&place, &["c", "a", "b"]);
    unmount(&place);
}

#[test]
fn the_mount_itself_is_no_layer_wherever_it_is_bound_to() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    place.sh("mkdir elsewhere tree && tar -C c -cf mnt/d/c.tar new && mount --bind mnt/d elsewhere").ok();
    place
        .sh("mkdir holds && mkdir holds/m && ./unionmount --lower a holds/m && mount --rbind holds tree")
        .ok();
    let add = |dir: &str, mount: &str| {
        let ended = place.sh(&format!("timeout -k 1 20 ./unionmount layers add {dir} {mount}"));
        if ended.code == Some(124) {
            // It waits for itself.
            for mount in support::mounts_below(place.path()).iter().filter(|one| one.kind.starts_with("fuse"))
            {
                fs::write(support::abort_of(mount.minor), "1").unwrap();
            }
        }
        ended
    };
    add("elsewhere", "mnt").refused(1, &["elsewhere", "lies in the mount"]);
    add("elsewhere/c.tar", "mnt").refused(1, &["c.tar", "lies in the mount"]);
    add("tree", "holds/m").refused(1, &["tree", "the mount lies in it"]);
    assert_eq!(fs::read_to_string(place.at("mnt/kept")).unwrap(), "b/kept");
    place.sh("umount elsewhere && umount -R tree").ok();
    place.unionmount(&["umount", "holds/m"]).ok();
    unmount(&place);
}

#[test]
fn a_directory_that_was_renamed_has_what_is_below_again_when_that_comes_back() {
    support::needs_root!();
    let place = mounted(&["--lower", "c:a:b", "--upper", "up"]);
    place.sh("mkdir mnt/p && mv mnt/own mnt/p/D && test -e mnt/p/D/deep/f").ok();
    place.unionmount(&["layers", "remove", "c", "mnt"]).ok();
    place
        .sh(&format!(
            "cd mnt/p/D && exec python3 -c '
import os, subprocess
number = os.stat(\".\").st_ino
assert not os.path.exists(\"deep\")
subprocess.run([\"{}\", \"layers\", \"add\", \"../../../c\", \"../..\"], check=True)
assert open(\"deep/f\").read() == \"c/own/deep/f\"
assert os.stat(\".\").st_ino == number and os.listdir(\".\") == [\"deep\"]
'",
            place.bin().display()
        ))
        .ok();
    unmount(&place);
}

/// A file of `b` with the names h1/one and h2/two, and a layer `x` that hides the first.
fn with_two_names(first: &str, second: &str) -> Place {
    let place = Place::new();
    build(&place);
    place
        .sh("mkdir -p b/h1 b/h2 x/h1 && echo b >b/h1/one && ln b/h1/one b/h2/two && echo x >x/h1/one && echo other >other")
        .ok();
    mount(&place, &["--lower", "a:b", "--upper", "up"]);
    for name in [first, second] {
        fs::metadata(place.at("mnt").join(name)).unwrap();
    }
    place
}

#[test]
fn a_file_with_several_names_stays_as_long_as_any_leads_to_it() {
    support::needs_root!();
    let place = with_two_names("h1/one", "h2/two");
    let root = place.at("mnt");
    let held = File::open(root.join("h1/one")).unwrap();
    let number = held.metadata().unwrap().ino();
    place.unionmount(&["layers", "add", "x", "mnt"]).ok();
    let mut text = [0; 2];
    held.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"b\n");
    assert_eq!(fs::metadata(root.join("h2/two")).unwrap().ino(), number);
    assert_eq!(held.metadata().unwrap().ino(), number);
    assert_eq!(fs::read_to_string(root.join("h1/one")).unwrap(), "x\n");
    place.unionmount(&["layers", "remove", "x", "mnt"]).ok();
    assert_eq!(fs::metadata(root.join("h1/one")).unwrap().ino(), number);
    // Under none of its names.
    fs::create_dir(place.at("x/h2")).unwrap();
    fs::write(place.at("x/h2/two"), "x").unwrap();
    place.unionmount(&["layers", "add", "x", "mnt"]).refused(1, &["--force"]);
    drop(held);
    unmount(&place);
}

#[test]
fn what_is_mounted_on_one_name_of_several_is_not_detached() {
    support::needs_root!();
    let place = with_two_names("h2/two", "h1/one");
    place.sh("mount --bind other mnt/h1/one").ok();
    place.unionmount(&["layers", "add", "x", "mnt"]).refused(1, &["h1/one", "detached"]);
    assert_eq!(fs::read_to_string(place.at("mnt/h1/one")).unwrap(), "other\n");
    place.sh("umount mnt/h1/one && mount --bind other mnt/h2/two").ok();
    place.unionmount(&["layers", "add", "x", "mnt"]).ok();
    assert_eq!(fs::read_to_string(place.at("mnt/h2/two")).unwrap(), "other\n");
    assert_eq!(fs::read_to_string(place.at("mnt/h1/one")).unwrap(), "x\n");
    place.sh("umount mnt/h2/two").ok();
    unmount(&place);
}

#[test]
fn layers_stay_while_what_is_known_can_not_be_looked_up() {
    support::needs_root!();
    let place = mounted(&["--lower", "a:b", "--upper", "up"]);
    look(&place.at("mnt"));
    place.unionmount(&["layers", "add", "c", "mnt"]).ok();
    place.sh("setfattr -n trusted.overlay.redirect -v x/y a/d").ok();
    place.unionmount(&["layers", "remove", "c", "mnt"]).refused(1, &["stay as they are", "redirect"]);
    place.sh("setfattr -x trusted.overlay.redirect a/d").ok();
    place.unionmount(&["layers", "remove", "c", "mnt"]).ok();
    assert_shows(&place, &["up", "a", "b"]);
    unmount(&place);
}

/// Makes a layer of whatever.
fn fill(random: &mut fastrand::Rng, place: &Place, dir: &str) {
    let top = place.mkdir(dir);
    for _ in 0..random.usize(4..10) {
        let path = top.join(path(random));
        drop(fs::create_dir_all(path.parent().unwrap()));
        match random.usize(0..10) {
            0..4 => drop(fs::write(&path, format!("{dir}{}", random.u8(..)))),
            4..7 => drop(fs::create_dir_all(&path)),
            7..9 if !path.exists() => drop(rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::empty(),
                0,
            )),
            _ if path.is_dir() => {
                rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
                    .unwrap();
            }
            _ => {}
        }
    }
}

fn path(random: &mut fastrand::Rng) -> String {
    let names: Vec<_> = (0..random.usize(1..4)).map(|_| ["a", "b", "c"][random.usize(..3)]).collect();
    names.join("/")
}

/// Changes something, whatever comes of it.
fn operate(random: &mut fastrand::Rng, root: &Path) {
    let (at, to) = (root.join(path(random)), root.join(path(random)));
    match random.usize(0..9) {
        0 | 1 => drop(fs::write(&at, format!("written {}", random.u8(..)))),
        2 => drop(fs::create_dir_all(&at)),
        3 => drop(fs::remove_file(&at)),
        4 => drop(fs::remove_dir_all(&at)),
        5 | 6 => drop(fs::rename(&at, &to)),
        7 => drop(fs::hard_link(&at, &to)),
        _ => drop(OpenOptions::new().append(true).open(&at).and_then(|mut file| file.write_all(b"more"))),
    }
}

/// Whatever is done, and whatever layers come and go: the mount shows what a new one shows of the same layers; what is open goes on
/// unless it was taken away by force. (The kernel lists whiteouts of which no layer below has the name.)
#[test]
fn random_sequences_show_what_a_new_mount_shows_of_the_same_layers() {
    support::needs_root!();
    for seed in 0..4 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let place = Place::new();
        for dir in ["a", "b", "up"] {
            drop(fs::remove_dir_all(place.at(dir)));
        }
        place.mkdir("up");
        let mut aside: Vec<String> = (0..5).map(|layer| format!("l{layer}")).collect();
        aside.iter().for_each(|dir| fill(random, &place, dir));
        let mut there: Vec<String> = aside.drain(..2).collect();
        mount(&place, &["--lower", &there.join(":"), "--upper", "up"]);
        let root = place.at("mnt");
        let mut held: Vec<File> = Vec::new();
        for step in 0..12 {
            (0..random.usize(1..6)).for_each(|_| operate(random, &root));
            let wanted = root.join(path(random));
            if wanted.is_file() {
                held.extend(File::open(wanted));
            }
            let force = random.u8(..) < 60;
            let forced: &[&str] = if force { &["--force"] } else { &[] };
            let is_added = there.len() < 2 || !aside.is_empty() && random.bool();
            let (ended, done) = if is_added {
                let layer = aside.swap_remove(random.usize(..aside.len()));
                let at = random.usize(..=there.len());
                let number = (at + 1).to_string();
                let words: &[&str] = if at == there.len() { &["--bottom"] } else { &["--above", &number] };
                let ended = place.unionmount(&[&["layers", "add"], forced, words, &[&layer, "mnt"]].concat());
                let done = ended.code == Some(0);
                if done {
                    there.insert(at, layer)
                } else {
                    aside.push(layer)
                }
                (ended, done)
            } else {
                let at = random.usize(..there.len());
                let number = (at + 1).to_string();
                let ended = place.unionmount(&[&["layers", "remove"], forced, &[&number, "mnt"]].concat());
                let done = ended.code == Some(0);
                if done {
                    aside.push(there.remove(at));
                }
                (ended, done)
            };
            assert!(done || !force && ended.err.contains("in use"), "{seed}, {step}: {ended:?}");
            let read = |file: &File| file.metadata().and_then(|_| file.read_at(&mut [0; 64], 0));
            if force {
                held.retain(|file| read(file).is_ok());
            }
            for file in &held {
                read(file).unwrap_or_else(|error| panic!("{seed}, {step}: {error}"));
            }
            let layers: Vec<&str> = std::iter::once("up").chain(there.iter().map(String::as_str)).collect();
            place.mkdir("oracle");
            place.unionmount(&["--lower", &layers.join(":"), "oracle"]).ok();
            let fields = Fields { nlink: false, ..Fields::tree() };
            let expected = Snapshot::take(&place.at("oracle"));
            place.unionmount(&["umount", "oracle"]).ok();
            crate::assert_same(&expected, &root, &fields, &format!("{seed}, {step}: {layers:?}"));
            if random.u8(..) < 40 {
                held.clear();
            }
        }
        let expected = Snapshot::take(&root);
        held.clear();
        unmount(&place);
        mount(&place, &["--lower", &there.join(":"), "--upper", "up"]);
        let fields = Fields { nlink: false, ..Fields::tree() };
        crate::assert_same(&expected, &root, &fields, "in the next mount");
        unmount(&place);
    }
}
