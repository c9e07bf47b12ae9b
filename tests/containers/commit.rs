//! Images of containers.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::{Bed, Success, lacking};
use support::{Fields, Snapshot, diff};

/// The layer that everybody knows as the empty one.
const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// A container that is mounted; where.
fn mounted(bed: &Bed, name: &str) -> String {
    bed.um(&["create", "--name", name, "bb"]).ok();
    bed.um(&["mount", name]).ok().out.trim().to_owned()
}

/// A small file of which only the attributes were copied, and these take a block by themselves.
#[test]
fn what_a_metacopy_leaves_below_is_in_the_image() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    let of = |field: &str| {
        let format = format!("{{{{.GraphDriver.Data.{field}}}}}");
        bed.um(&["inspect", "-f", &format, "c"]).ok().out.trim().to_owned()
    };
    let (lower, upper, work) = (of("LowerDir"), of("UpperDir"), of("WorkDir"));
    bed.sh(&format!(
        "mkdir m && ./unionmount -o lowerdir={lower},upperdir={upper},workdir={work},metacopy=on m && \
         setfattr -n user.large -v $(head -c 300 /dev/zero | tr '\\0' a) m/etc/group && chown 5:6 m/etc/group && \
         umount m && getfattr --absolute-names -n trusted.overlay.metacopy {upper}/etc/group"
    ))
    .ok();
    bed.um(&["commit", "c", "new:1"]).ok();
    bed.um(&["mount", "new:1", "mnt"]).ok();
    let text = fs::read_to_string(bed.place.at("mnt/etc/group")).unwrap();
    assert!(text.starts_with("root:x:0:"), "{text:?}");
    bed.place.umount("mnt");
}

/// And takes no more than it may.
#[test]
fn a_container_copies_no_data_for_attributes() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "--size", "4M", "--inodes", "300", "bb"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    let upper = bed.um(&["inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "c"]).ok().out.trim().to_owned();
    let program = fs::read(format!("{at}/bin/busybox")).unwrap();
    bed.sh(&format!("chown -R 5:6 {at}/bin {at}/etc && stat -f -c %b.%c {at}")).ok();
    let copy = Path::new(&upper).join("bin/busybox");
    assert!(support::read_xattrs(&copy).unwrap().contains_key(&b"trusted.overlay.metacopy"[..]));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < program.len() as u64 / 2);
    let said = bed.sh(&format!("cat /dev/zero > {at}/full; stat -f -c '%b %S %c' {at}"));
    assert!(said.err.contains("No space left on device"), "{said:?}");
    let told: Vec<u64> = said.out.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((told[0] * told[1], told[2]), (4 << 20, 300));
    fs::remove_file(format!("{at}/full")).unwrap();
    bed.um(&["commit", "c", "new:1"]).ok();
    bed.um(&["mount", "new:1", "mnt"]).ok();
    assert!(fs::read(bed.place.at("mnt/bin/busybox")).unwrap() == program);
    assert_eq!(fs::metadata(bed.place.at("mnt/bin/busybox")).unwrap().uid(), 5);
    bed.place.umount("mnt");
    bed.um(&["umount", "c"]).ok();
}

/// What can't be opened to be waited for has perhaps not arrived.
#[test]
fn a_mount_that_cannot_be_written_back_is_no_image() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    support::needs_program!("strace");
    let bed = Bed::new();
    let at = mounted(&bed, "c");
    bed.sh(&format!("mkdir -p {at}/d/e && echo x > {at}/d/e/f")).ok();
    let traced =
        |options: &str| bed.sh(&format!("strace -qq -o calls {options} ./unionmount commit c new:1"));
    traced("-e trace=openat,openat2").success();
    let calls = fs::read_to_string(bed.place.at("calls")).unwrap();
    // Both sides of each directory that is gone through, and each file.
    let mut tried = 0;
    for call in ["openat", "openat2"] {
        let of_call = calls.lines().filter(|line| line.starts_with(&format!("{call}(")));
        let written = |line: &&str| ["\"d\"", "\"d/e\"", "\"f\""].iter().any(|name| line.contains(name));
        let places: Vec<usize> =
            of_call.enumerate().filter(|(_, line)| written(line)).map(|(at, _)| at + 1).collect();
        for place in places {
            tried += 1;
            let ended = traced(&format!("-e trace={call} -e inject={call}:error=EIO:when={place}"));
            let log = fs::read_to_string(bed.place.at("calls")).unwrap();
            let at = log.lines().find(|line| line.contains("INJECTED")).unwrap();
            assert!(ended.code == Some(1) && ended.err.contains("Input/output error"), "{at}: {ended:?}");
        }
    }
    assert!(tried > 5, "{tried}: {calls}");
    bed.um(&["umount", "c"]).ok();
}

#[test]
fn an_image_of_a_container_shows_what_the_container_shows() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let at = mounted(&bed, "c");
    bed.sh(&format!(
        "cd {at} && echo new > etc/new && rm etc/os && mv data moved && rm -r bin/ls && mkdir -p bin/ls/x && \
         ln etc/new etc/linked && mknod etc/null c 1 3 && mkfifo etc/fifo && setfattr -n user.x -v y etc/new && \
         chmod 4711 etc/passwd && rm -r tmp && mkdir -m 700 tmp && touch tmp/f && chown 5:6 etc/group && \
         truncate -s 20M etc/sparse && echo end >> etc/sparse && ln -s nowhere etc/link && \
         touch -d '1969-12-31 23:59:58.5 UTC' etc/old"
    ))
    .ok();
    let id = bed.um(&["commit", "-a", "Ann", "-m", "a change", "-c", "ENV X=1", "c", "new:1"]).ok().out;
    assert_eq!(bed.image("new:1", "{{.Id}}"), id.trim());
    assert_eq!(bed.image("new:1", "{{.Author}}"), "Ann");
    assert!(bed.image("new:1", "{{json .Config.Env}}").contains("X=1"));
    assert!(bed.um(&["history", "new:1"]).ok().out.contains("a change"));
    bed.um(&["mount", "new:1", "mnt"]).ok();
    let (container, image) = (Snapshot::take(Path::new(&at)), Snapshot::take(&bed.place.at("mnt")));
    // The root's times aren't a change, and a container has mount points that its image lacks.
    let mut container = container;
    for name in [
        "",
        "dev",
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
        "proc",
        "sys",
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
    ] {
        container.entries.remove(Path::new(name).as_os_str());
    }
    let mut image = image;
    image.entries.remove(Path::new("").as_os_str());
    assert_eq!(diff(&container, &image, &Fields::tree()), "");
    // The layers of the first image are the second's, too.
    assert_eq!(fs::read_dir(bed.place.at("home/store/layers")).unwrap().count(), 2);
    let sparse = bed.place.at("mnt/etc/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "its holes were written: {}", sparse.blocks());
    bed.place.umount("mnt");
    bed.um(&["rm", "-f", "c"]).ok();
}

/// A file's names stay one file in the new layer, though one of them lies in a directory that was renamed, and so is looked
/// up in the union.
#[test]
fn hardlinks_into_a_renamed_directory_stay_one_file() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let at = mounted(&bed, "c");
    bed.sh(&format!(
        "cd {at}/data && mv sub moved && echo new >moved/new && ln moved/new above && ln moved/f old && ln old moved/again && \
         ln moved/f moved/f2 && ln -s x moved/link && ln moved/link link"
    ))
    .ok();
    let listing = "for f in above moved/new old moved/f moved/f2 moved/again link moved/link; do stat -c '%i %h' $f; done | uniq";
    assert_eq!(bed.sh(&format!("cd {at}/data && {listing}")).ok().out.lines().count(), 3);
    bed.um(&["commit", "c", "new:1"]).ok();
    bed.um(&["mount", "new:1", "mnt"]).ok();
    let shown = bed.sh(&format!("cd mnt/data && {listing}")).ok().out;
    let counts: Vec<&str> = shown.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(counts, ["2", "4", "2"], "{shown}");
    bed.place.umount("mnt");
    bed.um(&["rm", "-f", "c"]).ok();
}

/// A commit writes one tar, and no tree; what is told of the layer is the same before somebody needs its tree and after.
#[test]
fn a_layer_is_unpacked_when_it_is_needed() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let at = mounted(&bed, "c");
    bed.sh(&format!(
        "cd {at} && mkdir new && head -c 12345 /dev/zero > new/file && truncate -s 2M new/sparse"
    ))
    .ok();
    let trees = || fs::read_dir(bed.place.at("home/store/layers")).unwrap().count();
    bed.um(&["commit", "c", "new:1"]).ok();
    assert_eq!(trees(), 1);
    let told = || {
        let list = bed.um(&["images", "--format", "{{.Size}}", "new:1"]).ok().out;
        list + &bed.um(&["history", "--format", "{{.Size}} {{.Bytes}} {{.Layer}}", "new:1"]).ok().out
    };
    let before = told();
    bed.um(&["mount", "new:1", "mnt"]).ok();
    assert_eq!(trees(), 2);
    assert_eq!(fs::read(bed.place.at("mnt/new/file")).unwrap().len(), 12345);
    assert_eq!(told(), before);
    assert!(before.contains(&(12345 + (2 << 20)).to_string()), "{before}");
    bed.place.umount("mnt");
    bed.um(&["rm", "-f", "c"]).ok();
}

#[test]
fn the_same_content_is_the_same_layer() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    bed.um(&["create", "--name", "c", "bb"]).ok();
    bed.um(&["commit", "c", "unchanged"]).ok();
    assert!(bed.image("unchanged", "{{json .RootFS.Layers}}").ends_with(&format!("\"{EMPTY}\"]")));
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    fs::write(format!("{at}/etc/new"), "x").unwrap();
    fs::remove_file(format!("{at}/etc/os")).unwrap();
    bed.um(&["commit", "c", "one"]).ok();
    bed.um(&["commit", "c", "two"]).ok();
    let layers = "{{json .RootFS.Layers}}";
    assert_eq!(bed.image("one", layers), bed.image("two", layers));
    assert_ne!(bed.image("one", layers), bed.image("unchanged", layers));
    // Also from a container that was mounted and unmounted again.
    bed.sh(&format!("umount {at}")).ok();
    bed.place.wait_for_no_daemon();
    bed.um(&["commit", "c", "three"]).ok();
    assert_eq!(bed.image("one", layers), bed.image("three", layers));
    bed.um(&["commit", "c", "Bad Name"]).refused(2, &["Bad Name"]);
    bed.um(&["commit", "-c", "NONSENSE x", "c", "y"]).refused(2, &["NONSENSE"]);
}

#[test]
fn what_was_written_before_is_in() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    let bed = Bed::new();
    let at = mounted(&bed, "c");
    // Files that stay open, whose data the kernel may hold, and one that is mapped.
    fs::create_dir(format!("{at}/live")).unwrap();
    let mut open = Vec::new();
    for number in 0..60 {
        let mut file = File::create(format!("{at}/live/{number}")).unwrap();
        file.write_all(format!("{number}\n").repeat(3000).as_bytes()).unwrap();
        open.push(file);
    }
    let lower = File::options().append(true).open(format!("{at}/etc/os"));
    writeln!(lower.as_ref().unwrap(), "appended").unwrap();
    fs::set_permissions(format!("{at}/live/7"), fs::Permissions::from_mode(0o600)).unwrap();
    // Several times, since the kernel may write back by itself at any moment.
    let mut log = File::create(format!("{at}/live/log")).unwrap();
    for round in 0..5 {
        let line = format!("written in round {round}");
        writeln!(log, "{line}").unwrap();
        bed.um(&["commit", "c", "live"]).ok();
        let layers = bed.image("live", "{{json .RootFS.Layers}}");
        let digest = &layers.trim_end_matches("\"]")[layers.len() - 66..];
        let tar = fs::read(bed.place.at("home/store/blobs/sha256").join(digest)).unwrap();
        assert!(tar.windows(line.len()).any(|part| part == line.as_bytes()), "{line:?} is missing");
    }
    bed.um(&["mount", "live", "mnt"]).ok();
    for number in 0..60 {
        let path = bed.place.at("mnt/live").join(number.to_string());
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{number}\n").repeat(3000), "{}", path.display());
    }
    assert_eq!(bed.place.at("mnt/live/7").metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_to_string(bed.place.at("mnt/etc/os")).unwrap(), "made for a test\nappended\n");
    drop((open, lower, log));
    bed.place.umount("mnt");
    bed.um(&["rm", "-f", "c"]).ok();
}

#[test]
fn only_what_changed_is_read() {
    if let Some(why) = lacking(false) {
        support::skip!("{why}");
    }
    support::needs_program!("strace");
    let bed = Bed::new();
    // Many directories in the image, one small change.
    bed.sh("cd image && for i in $(seq 300); do mkdir -p many/$i; touch many/$i/f; done && tar -cf ../many.tar .").ok();
    bed.um(&["import", "many.tar", "many"]).ok();
    bed.um(&["create", "--name", "c", "many"]).ok();
    let at = bed.um(&["mount", "c"]).ok().out.trim().to_owned();
    fs::write(format!("{at}/many/7/f"), "x").unwrap();
    bed.sh(&format!("umount {at}")).ok();
    for verb in ["commit c new", "diff c"] {
        bed.sh(&format!(
            "strace -f -o trace -e trace=openat,openat2,open,newfstatat,statx ./unionmount {verb}"
        ))
        .success();
        let trace = fs::read_to_string(bed.place.at("trace")).unwrap();
        assert!(trace.contains("many"), "the trace shows nothing");
        let touched = trace.lines().filter(|line| line.contains("\"8\"") || line.contains("many/8")).count();
        assert_eq!(touched, 0, "{verb} looks at what has not changed");
    }
}
