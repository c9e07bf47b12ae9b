//! Images that other tools make: what Docker, podman, umoci and containerd all take is taken, with the same tree.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::lab::{Files, Image, Lab, Tar, descriptor, gzip, oci, sha256, three_layers, zstd};

/// Skips unless all programs are there.
macro_rules! needs {
    ($($program:literal),+) => {
        for program in [$($program),+] {
            if !std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(program).exists()) {
                support::skip!("{}: needs {program}", module_path!());
            }
        }
    };
}

/// A layer as podman and skopeo write zstd:chunked: a small frame first, and later ones with a larger window.
fn chunked(tar: &[u8]) -> Vec<u8> {
    let (first, rest) = tar.split_at(1024);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(25).unwrap();
    std::io::Write::write_all(&mut encoder, rest).unwrap();
    [zstd::encode_all(first, 3).unwrap(), encoder.finish().unwrap()].concat()
}

#[test]
fn later_frames_of_zstd_have_windows_of_their_own() {
    let lab = Lab::new();
    let image = three_layers().compressed(chunked, "+zstd");
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    assert_eq!(lab.inspect("app:1")["Id"], format!("sha256:{}", image.id()));
    lab.verify();
}

#[test]
fn xz_and_bzip2_are_read_and_not_stored() {
    needs!("xz", "bzip2", "tar");
    let lab = Lab::new();
    let image = three_layers();
    lab.write("plain.tar", &image.docker().archive());
    for program in ["xz", "bzip2"] {
        lab.out(&format!("rm -rf store; {program} -kf plain.tar; $UM load plain.tar.*; rm plain.tar.*"));
        assert_eq!(lab.inspect("app:1")["Id"], format!("sha256:{}", image.id()), "{program}");
        lab.verify();
        // A root filesystem, as distributions offer them; others could not read the store otherwise.
        lab.write("root/etc/os", b"debian");
        lab.out(&format!("tar -C root -c . | {program} > r; $UM import r root:1; $UM import - root:2 < r"));
        for name in ["root:1", "root:2"] {
            assert_eq!(fs::read(lab.layers(name)[0].join("etc/os")).unwrap(), b"debian");
        }
        let kinds = lab.out("for f in store/blobs/sha256/*; do head -c 3 $f | xxd -p; done");
        assert!(!kinds.contains("fd377a") && !kinds.contains("425a68"), "{kinds}");
        lab.verify();
    }
    // Layers that are compressed so, in an archive and in a pipe.
    lab.out("mkdir d && tar -C d -xf plain.tar && for f in d/*/layer.tar; do xz $f; mv $f.xz $f; done && tar -C d -cf x.tar .");
    for how in ["x.tar", "- < <(cat x.tar)"] {
        lab.out(&format!("rm -rf store; $UM load {how}"));
        assert_eq!(lab.inspect("app:1")["Id"], format!("sha256:{}", image.id()), "{how}");
        lab.verify();
    }
}

#[test]
fn what_holds_no_image_is_called_what_it_is() {
    let lab = Lab::new();
    let image = three_layers();
    let files = image.oci();
    let refused = |name: &str, files: &Files, parts: &[&str]| {
        files.write(&lab.at(name));
        lab.um(&["load", name]).refused(1, parts);
    };
    let mut empty = files.clone();
    empty.put("index.json", r#"{"schemaVersion":2,"manifests":[]}"#);
    refused("empty", &empty, &["OCI layout that holds no image"]);
    // A chart, and whatever else is kept in registries.
    let index: Value = serde_json::from_slice(files.get("index.json")).unwrap();
    let old = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
    let mut manifest: Value = serde_json::from_slice(files.get(&format!("blobs/sha256/{old}"))).unwrap();
    manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    let manifest = manifest.to_string();
    let mut chart = files.clone();
    chart.put(&format!("blobs/sha256/{}", sha256(manifest.as_bytes())), &manifest);
    let entry = descriptor(crate::lab::MANIFEST, manifest.as_bytes());
    chart.put("index.json", json!({ "schemaVersion": 2, "manifests": [entry] }).to_string());
    refused("chart", &chart, &["holds no image", "artifact", "helm.config"]);
    let mut dir = Files::default();
    dir.put("version", "Directory Transport Version: 1.1\n");
    dir.put("manifest.json", files.get(&format!("blobs/sha256/{old}")));
    refused("dir", &dir, &["dir:", "docker-dir", "skopeo copy"]);
}

/// Documents as Go reads them.
#[test]
fn keys_in_any_case_nulls_and_missing_fields() {
    let lab = Lab::new();
    let mut image = three_layers();
    image.config = json!({
        "rootfs": { "diff_ids": image.config["rootfs"]["diff_ids"] },
        "history": [null],
        "created": null,
        "config": {
            "cmd": "/bin/sh", "env": ["A=1"], "Entrypoint": "/init", "volumes": { "/v": null }, "Labels": null,
            "workingdir": "/srv", "exposedPorts": { "80/tcp": null }, "OnBuild": null,
        },
    });
    for files in [image.oci(), image.docker()] {
        lab.write("a.tar", &files.archive());
        lab.out("rm -rf store; $UM load a.tar");
        let shown = lab.inspect("app:1");
        assert_eq!(shown["Id"], format!("sha256:{}", image.id()));
        let config = &shown["Config"];
        assert_eq!(
            (&config["Cmd"], &config["Env"], &config["Entrypoint"], &config["Volumes"]),
            (&json!(["/bin/sh"]), &json!(["A=1"]), &json!(["/init"]), &json!({ "/v": {} }))
        );
        assert_eq!((&config["WorkingDir"], &config["Labels"]), (&json!("/srv"), &Value::Null));
        assert_eq!(lab.um(&["history", "-q", "app:1"]).ok().out.lines().count(), 3);
        lab.verify();
    }
    // containerify's manifests, and empty lists that are null.
    let files = three_layers().oci();
    let text = |name: &str| String::from_utf8(files.get(name).to_vec()).unwrap();
    let index: Value = serde_json::from_str(&text("index.json")).unwrap();
    let old = index["manifests"][0]["digest"].as_str().unwrap()[7..].to_owned();
    let manifest = text(&format!("blobs/sha256/{old}"))
        .replace("mediaType", "MediaType")
        .replace("\"layers\"", "\"Layers\"")
        .replacen('{', "{\"annotations\":null,", 1);
    let mut odd = files.clone();
    odd.put(&format!("blobs/sha256/{}", sha256(manifest.as_bytes())), &manifest);
    let mut entry = descriptor(crate::lab::MANIFEST, manifest.as_bytes());
    entry["Annotations"] = json!({ "org.opencontainers.image.ref.name": "odd:1" });
    entry["platform"] = Value::Null;
    odd.put("index.json", json!({ "SCHEMAVERSION": 2, "Manifests": [entry] }).to_string());
    lab.write("a.tar", &odd.archive());
    assert_eq!(lab.out("$UM load a.tar"), "Loaded image: odd:1");
    // They are kept as they are, so whoever looks for what is needed reads them so.
    lab.um(&["prune", "-f"]).ok();
    lab.verify();
    assert_eq!(lab.layers("odd:1").len(), 3);
}

/// Docker 25.0 wrote an index.json that named what it didn't save.
#[test]
fn an_unusable_index_beside_a_good_manifest() {
    let image = three_layers();
    for index in [r#"{"schemaVersion":2,"manifests":[]}"#, "missing"] {
        let lab = Lab::new();
        let mut files = image.docker();
        let index = match index {
            "missing" => {
                json!({ "schemaVersion": 2, "manifests": [descriptor(crate::lab::MANIFEST, b"not there")] })
                    .to_string()
            }
            text => text.to_owned(),
        };
        files.put("index.json", index);
        lab.write("a.tar", &files.archive());
        assert_eq!(lab.out("$UM load a.tar"), "Loaded image: app:1");
        assert_eq!(lab.inspect("app:1")["Id"], format!("sha256:{}", image.id()));
        lab.verify();
    }
    // What is damaged is told.
    let lab = Lab::new();
    let mut files = image.docker();
    files.put("index.json", "{");
    lab.write("a.tar", &files.archive());
    lab.um(&["load", "a.tar"]).refused(1, &["index.json is no index of images"]);
}

/// Several images for several machines, in one index or in indexes in it; the best one is taken.
#[test]
fn the_image_that_runs_best_here_is_taken() {
    let arch = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    let named = |content: &str, arch: &str| {
        let mut image = Image::new("x", vec![Tar::new().file("f", content).bytes()]);
        image.config["architecture"] = json!(arch);
        image
    };
    let own = named("own", &arch);
    let images = [named("other", "s390x"), own.clone(), named("third", "ppc64le")];
    let layout = |platforms: bool, nested: bool| {
        let mut files = oci(&images);
        let index: Value = serde_json::from_slice(files.get("index.json")).unwrap();
        let mut entries = index["manifests"].as_array().unwrap().clone();
        for (entry, image) in entries.iter_mut().zip(&images) {
            entry.as_object_mut().unwrap().remove("annotations");
            if platforms {
                entry["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
            }
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let wrap = |files: &mut Files, entries: &[Value]| {
            let inner = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries }).to_string();
            files.put(&format!("blobs/sha256/{}", sha256(inner.as_bytes())), &inner);
            descriptor(kind, inner.as_bytes())
        };
        let mut outer = match nested {
            true => {
                let parts = [wrap(&mut files, &entries[..1]), wrap(&mut files, &entries[1..])];
                wrap(&mut files, &parts)
            }
            false => wrap(&mut files, &entries),
        };
        outer["annotations"] = json!({ "org.opencontainers.image.ref.name": "multi:1" });
        files.put("index.json", json!({ "schemaVersion": 2, "manifests": [outer] }).to_string());
        files
    };
    for (platforms, nested) in [(true, false), (false, false), (true, true), (false, true)] {
        let lab = Lab::new();
        lab.write("a.tar", &layout(platforms, nested).archive());
        assert_eq!(lab.out("$UM load a.tar"), "Loaded image: multi:1");
        assert_eq!(lab.inspect("multi:1")["Id"], format!("sha256:{}", own.id()), "{platforms} {nested}");
    }
    // One name for several machines, in index.json itself.
    let mut files = oci(&images);
    let mut index: Value = serde_json::from_slice(files.get("index.json")).unwrap();
    for (entry, image) in index["manifests"].as_array_mut().unwrap().iter_mut().zip(&images) {
        entry["platform"] = json!({ "os": "linux", "architecture": image.config["architecture"] });
    }
    files.put("index.json", index.to_string());
    let lab = Lab::new();
    lab.write("a.tar", &files.archive());
    lab.um(&["load", "a.tar"]).ok();
    assert_eq!(lab.inspect("x")["Id"], format!("sha256:{}", own.id()));
    // None for this one: what there is, is told.
    let mut none = images.clone();
    none[1].config["architecture"] = json!("mips64le");
    let mut files = oci(&none);
    let index: Value = serde_json::from_slice(files.get("index.json")).unwrap();
    let inner = json!({ "schemaVersion": 2, "manifests": index["manifests"] }).to_string();
    files.put(&format!("blobs/sha256/{}", sha256(inner.as_bytes())), &inner);
    let outer = descriptor("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    files.put("index.json", json!({ "schemaVersion": 2, "manifests": [outer] }).to_string());
    lab.write("a.tar", &files.archive());
    let machine = format!("no image for linux/{arch}");
    lab.um(&["load", "a.tar"]).refused(1, &[&machine, "linux/s390x", "linux/mips64le", "linux/ppc64le"]);
}

#[test]
fn a_digest_belongs_to_a_name() {
    let lab = Lab::new();
    let image = three_layers();
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    let digest = lab.out("$UM inspect -f '{{index .RepoDigests 0}}' app:1");
    let (name, digest) = digest.split_once('@').unwrap();
    assert_eq!(name, "app");
    for text in [
        format!("app@{digest}"),
        format!("app:1@{digest}"),
        format!("docker.io/library/app@{digest}"),
        digest.to_owned(),
    ] {
        assert_eq!(lab.inspect(&text)["Id"], format!("sha256:{}", image.id()), "{text}");
    }
    lab.um(&["inspect", &format!("other@{digest}")]).refused(1, &["other@sha256"]);
    lab.um(&["rmi", &format!("other@{digest}")]).refused(1, &["other@sha256"]);
}

/// GNU tar's own forms, as Python writes them, beside what umoci makes of them.
const ODDITIES: &str = r#"
import io, tarfile
out = tarfile.open("layer.tar", "w", format=tarfile.GNU_FORMAT)
def add(name, kind=tarfile.REGTYPE, content=b"", link="", **rest):
    info = tarfile.TarInfo(name); info.type = kind; info.size = len(content); info.linkname = link; info.mode = 0o755
    for key, value in rest.items(): setattr(info, key, value)
    out.addfile(info, io.BytesIO(content))
add("/abs", tarfile.DIRTYPE)
add("/abs/f", content=b"1")
add("hard", tarfile.LNKTYPE, link="/abs/f")
add("old", content=b"2", mtime=-3)
add("ids", content=b"3", uid=0xfffffffe, gid=100)
add("usr/lib", tarfile.DIRTYPE)
add("lib", tarfile.SYMTYPE, link="usr/lib")
add("lib/x", content=b"4")
add("d/./../d/g", content=b"5")
out.close()
"#;

#[test]
fn oddities_of_tars_are_unpacked_as_umoci_unpacks_them() {
    support::needs_root!();
    needs!("python3", "umoci");
    let lab = Lab::new();
    lab.write("make.py", ODDITIES.as_bytes());
    lab.out("python3 make.py");
    let image = Image::new("odd:1", vec![fs::read(lab.at("layer.tar")).unwrap()]);
    image.oci().write(&lab.at("layout"));
    lab.out("$UM load layout; umoci unpack --image layout:odd:1 b 2>/dev/null");
    let own = lab.layers("odd:1")[0].clone();
    let listing = |dir: &std::path::Path| {
        lab.out(&format!("cd {} && find . -mindepth 1 -printf '%P %y %m %U:%G %s %l %T@\n' | grep -v '^[a-z/]* d' | LC_ALL=C sort", dir.display()))
    };
    assert_eq!(listing(&own), listing(&lab.at("b/rootfs")));
    assert_eq!(fs::metadata(own.join("hard")).unwrap().ino(), fs::metadata(own.join("abs/f")).unwrap().ino());
    assert_eq!(fs::read(own.join("usr/lib/x")).unwrap(), b"4");
    lab.verify();
}

/// One line for each attribute that can't be had, however many files have it.
#[test]
fn attributes_that_cannot_be_set_are_told_once() {
    needs!("python3");
    let lab = Lab::new();
    let script = r#"
import io, tarfile
out = tarfile.open("layer.tar", "w", format=tarfile.PAX_FORMAT)
for at in range(9):
    info = tarfile.TarInfo(f"f{at}"); info.pax_headers = {"SCHILY.xattr.com.apple.quarantine": "x", "SCHILY.xattr.user.a": "y"}
    out.addfile(info)
info = tarfile.TarInfo("l"); info.type = tarfile.SYMTYPE; info.linkname = "f"; info.pax_headers = {"SCHILY.xattr.user.a": "y"}
out.addfile(info)
out.close()
"#;
    lab.write("make.py", script.as_bytes());
    lab.out("python3 make.py");
    let ended = lab.um(&["import", "layer.tar", "apple:1"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.err.lines().filter(|line| line.contains("left out")).collect();
    assert_eq!(lines.iter().filter(|line| line.contains("com.apple.quarantine")).count(), 1, "{ended:?}");
    assert!(lines.len() <= 2 && lines[0].contains("f0 and 8 more"), "{ended:?}");
    let kept = lab.out(&format!(
        "getfattr -n user.a --only-values {}/f3 2>/dev/null || echo y",
        lab.layers("apple:1")[0].display()
    ));
    assert_eq!(kept, "y");
}

/// What is written holds no form that others don't read.
#[test]
fn holes_are_saved_as_zeros_that_take_no_space() {
    needs!("tar", "busybox");
    let lab = Lab::new();
    lab.out(
        "mkdir t && truncate -s 64M t/sparse && printf end >> t/sparse && $UM import t sparse:1 >/dev/null",
    );
    let blob = lab.out("ls -S store/blobs/sha256/* | head -1");
    assert!(fs::metadata(lab.at(&blob)).unwrap().len() > 64 << 20);
    assert!(fs::metadata(lab.at(&blob)).unwrap().blocks() * 512 < 1 << 20, "zeros take space");
    lab.out(&format!("mkdir u && busybox tar -C u -xf {blob} && cmp t/sparse u/sparse"));
    lab.out("$UM save --format docker sparse:1 | tar -xO --wildcards '*.tar' | busybox tar -xO sparse | cmp - t/sparse");
    // All forms of GNU are read.
    for form in ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"] {
        lab.out(&format!("tar -C t -S --format={form} -cf s.tar sparse && test $(stat -c %s s.tar) -lt 100000 && $UM import s.tar s:1"));
        let path = lab.layers("s:1")[0].join("sparse");
        lab.out(&format!("cmp t/sparse {}", path.display()));
        assert!(fs::metadata(path).unwrap().blocks() * 512 < 1 << 20);
    }
    lab.verify();
}

/// Docker before version 25 reads manifest.json alone, and podman 4 takes two images out of one archive only by it.
#[test]
fn what_is_saved_can_be_read_in_both_ways() {
    let lab = Lab::new();
    let first = three_layers().compressed(gzip, "+gzip");
    let second = Image::new("two:1", vec![Tar::new().file("f", "2").bytes()]).compressed(zstd, "+zstd");
    lab.write("a.tar", &oci(&[first.clone(), second.clone()]).archive());
    lab.um(&["load", "a.tar"]).ok();
    lab.out("$UM save -o s.tar app:1 two:1 && mkdir s && tar -C s -xf s.tar");
    let listed: Value = serde_json::from_slice(&fs::read(lab.at("s/manifest.json")).unwrap()).unwrap();
    for (entry, image) in listed.as_array().unwrap().iter().zip([&first, &second]) {
        assert_eq!(entry["RepoTags"], json!(image.names));
        assert_eq!(entry["Config"], format!("blobs/sha256/{}", image.id()));
        for (file, (blob, _)) in entry["Layers"].as_array().unwrap().iter().zip(&image.blobs) {
            assert_eq!(&fs::read(lab.at("s").join(file.as_str().unwrap())).unwrap(), blob);
        }
    }
    // By manifest.json alone it is the same.
    lab.out("rm s/index.json s/oci-layout && $UM load --root again s");
    for image in [first, second] {
        let id = lab.out(&format!("$UM inspect --root again -f '{{{{.Id}}}}' {}", image.names[0]));
        assert_eq!(id, format!("sha256:{}", image.id()));
    }
}

#[test]
fn podman_loads_two_images_out_of_one_archive() {
    support::needs_root!();
    needs!("podman");
    let lab = Lab::new();
    let images = [
        three_layers().compressed(gzip, "+gzip"),
        Image::new("two:1", vec![Tar::new().file("f", "2").bytes()]),
    ];
    lab.write("a.tar", &oci(&images).archive());
    lab.out("$UM load a.tar; $UM save -o s.tar app:1 two:1");
    let podman = "podman --root $PWD/ps --runroot $PWD/pr --storage-driver vfs";
    lab.out(&format!("{podman} load -q -i s.tar"));
    for image in &images {
        let id = lab.out(&format!("{podman} image inspect --format '{{{{.Id}}}}' {}", image.names[0]));
        assert_eq!(id, image.id());
    }
    lab.out(&format!("{podman} rmi -a -f"));
}

#[test]
fn a_foreign_image_is_told_before_it_runs() {
    support::needs_root!();
    needs!("crun");
    let lab = Lab::new();
    let mut elf = [b"\x7fELF\x02\x02\x01".to_vec(), vec![0; 57]].concat();
    elf[16..20].copy_from_slice(&[0, 2, 0, 22]);
    let tar = Tar::new().dir("bin/").program("bin/sh", &elf).program("bin/none", b"echo hi\n");
    let mut image = Image::new("far:1", vec![tar.bytes()]);
    image.config["architecture"] = json!("s390x");
    lab.write("a.tar", &image.oci().archive());
    lab.um(&["load", "a.tar"]).ok();
    let ended = lab.um(&["run", "--rm", "far:1", "/bin/sh"]);
    // One line, not the kernel's, and the status that shells give.
    assert_eq!((ended.code, ended.err.lines().count()), (Some(126), 1), "{ended:?}");
    assert!(
        ended.err.contains("/bin/sh: is a program for s390x") && ended.err.contains("emulator"),
        "{ended:?}"
    );
    let ended = lab.um(&["run", "--rm", "far:1", "/bin/none"]);
    assert_eq!((ended.code, ended.err.lines().count()), (Some(126), 1), "{ended:?}");
    assert!(ended.err.contains("neither a program nor a script"), "{ended:?}");
    assert_eq!(lab.um(&["ps", "-aq"]).ok().out, "");
}
