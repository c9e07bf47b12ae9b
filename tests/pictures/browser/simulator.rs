//! The page that simulates a union without a mount (docs/simulator.html): random sequences through it and through a mount give
//! the same errors, answers, merged views and whiteouts; and it is worked by hand.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::looking::{SIZES, axe};
use crate::webdriver::Browser;
use support::model::harness::{cases, seed};
use support::{self, Layer, OpaqueForm, Stack, WhiteoutForm};

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/simulator.html")
}

/// A path of one to three names out of three, so that operations meet; two of them are what JavaScript's objects have.
fn path(random: &mut fastrand::Rng) -> String {
    let depth = random.usize(1..=3);
    (0..depth)
        .map(|_| *random.choice(&["a", "constructor", "__proto__"]).unwrap())
        .collect::<Vec<_>>()
        .join("/")
}

/// Writes a random layer, and returns it as the page has layers.
pub(super) fn layer(random: &mut fastrand::Rng, layer: &Layer) -> Value {
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    for _ in 0..random.usize(2..=7) {
        let path = path(random);
        let parents: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        // What is there stays, and a directory is in directories.
        if entries.contains_key(&path)
            || parents.iter().any(|dir| entries.get(*dir).is_some_and(|entry| entry["kind"] != "dir"))
        {
            continue;
        }
        for dir in parents {
            entries.entry(dir.to_owned()).or_insert_with(|| json!({"kind": "dir"}));
        }
        let entry = match random.u8(0..10) {
            0 | 1 => json!({"kind": "whiteout"}),
            2 => json!({"kind": "dir", "opaque": true}),
            3 | 4 => json!({"kind": "dir"}),
            _ => json!({"kind": "file", "text": random.u16(..).to_string()}),
        };
        entries.insert(path, entry);
    }
    for (path, entry) in &entries {
        match entry["kind"].as_str().unwrap() {
            "whiteout" => layer.whiteout(path, WhiteoutForm::Device),
            "dir" if entry["opaque"] == true => layer.opaque(path, OpaqueForm::of_process()),
            "dir" => layer.dir(path),
            _ => layer.file(path, entry["text"].as_str().unwrap()),
        };
    }
    Value::Object(entries.into_iter().collect::<Map<_, _>>())
}

fn operation(random: &mut fastrand::Rng) -> Value {
    let op = *random
        .choice(&[
            "read", "write", "append", "mkdir", "mkdir", "unlink", "unlink", "rmdir", "rename", "rename",
            "rename", "list",
        ])
        .unwrap();
    let other = if op == "rename" { path(random) } else { random.u16(..).to_string() };
    json!({"op": op, "path": path(random), "other": other})
}

/// Does the operation in a mount; the answer, or the error's name.
fn perform(root: &Path, operation: &Value) -> (Value, Value) {
    let at = root.join(operation["path"].as_str().unwrap());
    let other = operation["other"].as_str().unwrap();
    let none = |()| Value::Null;
    let done: io::Result<Value> = match operation["op"].as_str().unwrap() {
        "read" => fs::read_to_string(&at).map(Value::from),
        "write" => fs::write(&at, other).map(none),
        "append" => fs::OpenOptions::new()
            .append(true)
            .open(&at)
            .and_then(|mut file| file.write_all(other.as_bytes()))
            .map(none),
        "mkdir" => fs::create_dir(&at).map(none),
        "unlink" => fs::remove_file(&at).map(none),
        "rmdir" => fs::remove_dir(&at).map(none),
        "rename" => fs::rename(&at, root.join(other)).map(none),
        _ => fs::read_dir(&at).map(|entries| {
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            Value::from(names)
        }),
    };
    match done {
        Ok(answer) => (answer, Value::Null),
        Err(error) => {
            let name = match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => "ENOENT",
                Some(Errno::ISDIR) => "EISDIR",
                Some(Errno::NOTDIR) => "ENOTDIR",
                Some(Errno::NOTEMPTY) => "ENOTEMPTY",
                Some(Errno::EXIST) => "EEXIST",
                Some(Errno::INVAL) => "EINVAL",
                _ => panic!("{operation}: {error}"),
            };
            (Value::Null, name.into())
        }
    }
}

/// Path → the text of a file, null for a directory.
fn view(root: &Path, below: &str, view: &mut Map<String, Value>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            self::view(root, &format!("{path}/"), view);
            view.insert(path, Value::Null);
        } else {
            view.insert(path, fs::read_to_string(entry.path()).unwrap().into());
        }
    }
}

/// The whiteouts of an upper.
fn deleted(root: &Path, below: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}{}", entry.file_name().into_string().unwrap());
        let stat = entry.metadata().unwrap();
        if stat.is_dir() {
            deleted(root, &format!("{path}/"), found);
        } else if stat.file_type().is_char_device() && stat.rdev() == 0 {
            found.push(path);
        }
    }
}

#[test]
fn it_does_what_the_union_does() {
    let Some(browser) = Browser::start() else { return };
    if !Path::new("/dev/fuse").exists() {
        return support::skipped("no /dev/fuse");
    }
    browser.open(&page());
    browser.wait("document.documentElement.dataset.ready");
    let first = seed(4711);
    for number in 0..u64::from(cases(25)) {
        let mut random = fastrand::Rng::with_seed(first + number);
        let stack = Stack::new(3);
        let lowers: Vec<Value> = stack.lowers().iter().map(|lower| layer(&mut random, lower)).collect();
        let operations: Vec<Value> = (0..30).map(|_| operation(&mut random)).collect();
        // As text both ways: a name such as `__proto__` means something in a program.
        let text = serde_json::to_string(&json!([lowers, operations])).unwrap();
        let simulated = browser.run(&format!(
            "return JSON.stringify(simulate(...JSON.parse({})));",
            serde_json::to_string(&text).unwrap()
        ));
        let simulated: Value = serde_json::from_str(simulated.as_str().unwrap()).unwrap();
        let mount = stack.mount();
        for (at, operation) in operations.iter().enumerate() {
            let (answer, error) = perform(mount.path(), operation);
            let (mut seen, mut whiteouts) = (Map::new(), Vec::new());
            view(mount.path(), "", &mut seen);
            deleted(stack.upper().root(), "", &mut whiteouts);
            whiteouts.sort();
            let found = json!({"answer": answer, "error": error, "view": seen, "deleted": whiteouts});
            assert_eq!(
                simulated[at],
                found,
                "seed {}, operation {at}: {operation}\nthe page on the left, the mount on the right; before: {:#?}\n{lowers:#?}",
                first + number,
                &operations[..at]
            );
        }
    }
}

#[test]
fn its_lesson_is_gone_through() {
    let Some(browser) = Browser::start() else { return };
    for (name, width, height, mobile) in SIZES {
        for scheme in ["light", "dark"] {
            browser.screen(width, height, mobile);
            browser.scheme(scheme);
            browser.open(&page());
            browser.wait("document.documentElement.dataset.ready");
            assert_eq!(
                browser.text("performance.getEntriesByType('resource').length"),
                "0",
                "something was loaded"
            );
            let happened = || browser.text("document.querySelector('#log li').innerText");
            for said in [
                "read from layer 1",
                "7 B are copied to the upper",
                "whiteout: etc/os",
                "merged from layer 2, layer 3",
                "redirect: srv/web/",
                "opaque: what the layers below have there stays hidden",
            ] {
                browser.click("#show");
                assert!(happened().contains(said), "{said}: {}", happened());
                browser.click("#next");
            }
            axe(&browser);
            let wide = browser.text("document.documentElement.scrollWidth");
            assert!(wide.parse::<u32>().unwrap() <= width, "{wide} wide on {width}");
            browser.shot(&format!("simulator-{name}-{scheme}"));
        }
    }
    let stack = || browser.text("document.getElementById('stack').innerText.replaceAll('\\n', ' ')");
    assert!(stack().contains("etc/os whiteout") && stack().contains("redirect to srv/site/"), "{}", stack());
    // In another language: what was said already, too.
    let page_says = |parts: &[&str]| {
        let said = browser.text("document.title + document.body.innerText");
        for part in parts {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    };
    browser.run(
        "const l = document.getElementById('language'); l.value = 'zh'; l.dispatchEvent(new Event('change'))",
    );
    assert_eq!(browser.text("document.documentElement.lang"), "zh");
    page_says(&[
        "试一试联合文件系统",
        "合并视图",
        "由第 2 层、第 3 层合并而成",
        "不透明：下层在那里的内容仍被遮住",
        "删除标记",
    ]);
    assert_eq!(
        browser.text("document.body.innerText.replaceAll(/Welcome to the union/g, '').match(/[a-z]{3,} [a-z]{2,} [a-z]{2,}/)"),
        "null",
        "English is left"
    );
    axe(&browser);
    browser.shot("simulator-zh");
    browser.run(
        "const l = document.getElementById('language'); l.value = 'en'; l.dispatchEvent(new Event('change'))",
    );
    page_says(&["A union filesystem to try", "merged from layer 2, layer 3"]);
    // What fails says so, and is not undone.
    browser.click("#again");
    browser.run("document.getElementById('operation').value = 'rmdir'; document.getElementById('path').value = '/srv//site/'");
    browser.click("#do");
    assert!(
        browser
            .text("document.querySelector('#log .failed').innerText")
            .contains("ENOTEMPTY: the directory is not empty")
    );
    browser.run("document.getElementById('operation').value = 'unlink'; document.getElementById('path').value = 'etc/os'");
    browser.click("#do");
    assert!(stack().contains("whiteout"), "{}", stack());
    browser.click("#undo");
    assert!(!stack().contains("whiteout"), "{}", stack());
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}
