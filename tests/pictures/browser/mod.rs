//! The page and the picture in a real browser: looked at, clicked, by keyboard, with a hundred thousand files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

mod finding;
mod looking;
mod rules;
mod simulator;

use crate::agreement::unionmount;
use crate::webdriver::{Browser, keys};
use support::{self, OpaqueForm, Stack, WhiteoutForm};

/// Five layers, in which everything happens.
fn stack() -> Stack {
    let stack = Stack::new(4);
    stack.lower(3).file("etc/os-release", "Debian 12\n").file("etc/passwd", "root:x:0:0\n");
    stack.lower(3).file("usr/lib/libc.so", vec![0; 1_900_000]).file("usr/bin/bash", vec![0; 1_200_000]);
    for number in 0..40 {
        stack.lower(3).file(format!("var/lib/apt/lists/list{number:02}"), vec![b'a'; 40_000 + number]);
        stack
            .lower(3)
            .file(format!("usr/share/doc/package{number:02}/copyright"), vec![b'c'; 1000 + 7 * number]);
    }
    stack.lower(2).file("usr/bin/python3", vec![0; 6_000_000]).file("usr/lib/python/os.py", vec![0; 40_000]);
    stack
        .lower(2)
        .file("etc/passwd", "root:x:0:0\napp:x:1000:1000\n")
        .whiteout("var/lib/apt/lists", WhiteoutForm::Device);
    stack.lower(1).file("srv/app/app.conf", "port = 80\n").file("srv/app/main.py", vec![b'm'; 9000]);
    stack
        .lower(1)
        .file("srv/app/assets/logo.svg", vec![b'l'; 30_000])
        .symlink("srv/app/python", "/usr/bin/python3");
    stack
        .lower(0)
        .file("srv/app/app.conf", "port = 8080\n")
        .opaque("srv/app/assets", OpaqueForm::of_process());
    stack
        .lower(0)
        .file("srv/app/assets/new.svg", vec![b'n'; 2000])
        .file("usr/bin/python3", vec![0; 6_100_000]);
    stack.upper().file("srv/app/app.conf", "port = 443\n").whiteout("srv/app/main.py", WhiteoutForm::Device);
    stack.upper().file("srv/app/log/today", vec![b'.'; 700]);
    stack
        .upper()
        .file("hostile/<img src=x onerror=alert(1)><script>alert(2)<", "")
        .file("hostile/{{script}}{{data}}", "");
    stack.upper().file("hostile/]]><!--\u{2028}\u{202e}fdp.exe", "").file("hostile/文件 名", "");
    stack.upper().file(OsStr::from_bytes(b"hostile/not-utf8-\xff\xfe\x1b[31m"), "");
    stack
}

/// Writes the page and the picture.
fn write(stack: &Stack, with_upper: bool) -> (PathBuf, PathBuf) {
    let (html, svg) = (stack.scratch().path().join("layers.html"), stack.scratch().path().join("layers.svg"));
    let mut arguments: Vec<OsString> = vec!["layers".into()];
    for lower in stack.lowers() {
        arguments.extend(["--lower".into(), lower.root().into()]);
    }
    if with_upper {
        arguments.extend(["--upper".into(), stack.upper().root().into()]);
    }
    arguments.extend(["--html".into(), html.clone().into(), "--svg".into(), svg.clone().into()]);
    support::run(unionmount(), &arguments);
    (html, svg)
}

/// Writes the page of all layers, with further arguments.
fn write_in(stack: &Stack, more: &[&str]) -> PathBuf {
    let html = stack.scratch().path().join("layers.html");
    let mut arguments: Vec<OsString> = vec!["layers".into()];
    for lower in stack.lowers() {
        arguments.extend(["--lower".into(), lower.root().into()]);
    }
    arguments.extend(["--upper".into(), stack.upper().root().into(), "--html".into(), html.clone().into()]);
    arguments.extend(more.iter().map(OsString::from));
    support::run(unionmount(), &arguments);
    html
}

/// The names of the rows in sight, with `+`, `~`, `−` before them.
const ROWS: &str = "[...document.querySelectorAll('.row:not([hidden])')]\
    .sort((a, b) => parseInt(a.style.top) - parseInt(b.style.top))\
    .map(r => r.children[0].textContent + r.children[2].textContent).join(' ')";
const CURSOR: &str =
    "document.getElementById(document.getElementById('tree').getAttribute('aria-activedescendant'))";

fn row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('.row:not([hidden])')].find(r => r.children[2].textContent === '{name}')"
    )
}

#[test]
fn the_page_is_clicked_and_searched() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let (html, _) = write(&stack, true);
    browser.screen(1440, 900, false);
    browser.scheme("light");
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    assert_eq!(browser.text("performance.getEntriesByType('resource').length"), "0", "something was loaded");
    assert_eq!(browser.text("document.scripts.length"), "2", "a name became a script");
    assert_eq!(browser.text("document.images.length"), "0", "a name became an image");
    let rows = browser.text(ROWS);
    for name in [
        "+<img src=x onerror=alert(1)><script>alert(2)<",
        "+{{script}}{{data}}",
        "+文件 名",
        r"+not-utf8-\xff\xfe\u{1b}[31m",
    ] {
        assert!(rows.contains(name), "{name} in {rows}");
    }
    assert!(rows.contains(r"\u{2028}\u{202e}fdp.exe"), "{rows}");

    // Roles, for who doesn't see it.
    assert_eq!(browser.text("document.getElementById('tree').getAttribute('role')"), "tree");
    let etc = row("etc/");
    assert_eq!(browser.text(&format!("{etc}.getAttribute('role')")), "treeitem");
    assert_eq!(browser.text(&format!("{etc}.getAttribute('aria-expanded')")), "true");
    assert_eq!(
        browser.text(&format!(
            "['aria-level', 'aria-posinset', 'aria-setsize'].map(a => {etc}.getAttribute(a))"
        )),
        "1,1,5"
    );

    // A click on a file: its history.
    browser.type_into("#search", "app.conf");
    browser.wait(&format!("{} && {ROWS}.split(' ').length === 3", row("app.conf")));
    assert_eq!(browser.text(ROWS), "srv/ app/ ~app.conf");
    assert_eq!(browser.text("document.getElementById('found').textContent"), "1 match");
    browser.run(&format!("{}.setAttribute('data-test', 'this')", row("app.conf")));
    browser.click("[data-test=this] .name");
    let history = browser.text(
        "[...document.querySelectorAll('#history li')].map(l => l.className + '|' + l.innerText).join('\\n')",
    );
    let layers: Vec<&str> = history.split("|").skip(1).map(|l| l.trim_start_matches("Layer ")).collect();
    assert_eq!(layers.len(), 3, "{history}");
    assert!(layers[0].contains("upper") && layers[0].contains("replaces what layer 1 has"), "{history}");
    assert!(layers[0].contains("seen"), "{history}");
    assert!(layers[1].starts_with("1: lower0") && layers[1].contains("hidden by the upper"), "{history}");
    assert!(layers[2].starts_with("2: lower1") && layers[2].contains("hidden by layer 1"), "{history}");
    assert_eq!(browser.text("document.querySelector('#history code').textContent"), "/srv/app/app.conf");

    // A path is searched when there is a slash.
    browser.type_into("#search", keys::ESCAPE);
    browser.type_into("#search", "app/as");
    browser.wait("document.getElementById('found').textContent === '3 matches, 1 not seen'");
    assert_eq!(browser.text(ROWS), "srv/ app/ assets/ ○logo.svg new.svg");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn the_page_is_worked_by_keyboard() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let (html, _) = write(&stack, true);
    browser.screen(1440, 900, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    let at = || browser.text(&format!("{CURSOR}.children[2].textContent"));

    // The search by its key, from there into the tree.
    browser.press(&["/"]);
    assert_eq!(browser.text("document.activeElement.id"), "search");
    browser.press(&[keys::DOWN]);
    assert_eq!(browser.text("document.activeElement.id"), "tree");
    assert_eq!(at(), "etc/");
    browser.press(&[keys::LEFT]);
    assert_eq!(browser.text(&format!("{CURSOR}.getAttribute('aria-expanded')")), "false");
    browser.press(&[keys::DOWN]);
    assert_eq!(at(), "hostile/");
    browser.press(&[keys::UP, keys::RIGHT, keys::DOWN]);
    assert_eq!(at(), "os-release");
    browser.press(&[keys::LEFT]);
    assert_eq!(at(), "etc/", "from a file to its directory");
    browser.press(&["s", "r"]);
    assert_eq!(at(), "srv/", "by its first letters");
    browser.press(&[keys::END]);
    assert_eq!(browser.text(&format!("{CURSOR}.getAttribute('aria-level') > 1")), "true");
    browser.press(&[keys::HOME, keys::ENTER]);
    assert_eq!(browser.text(&format!("{CURSOR}.getAttribute('aria-expanded')")), "false");
    assert_eq!(browser.text("document.querySelector('#history code').textContent"), "/etc");

    // The slider: the pile from the bottom up.
    browser.run("document.getElementById('slider').focus()");
    browser.press(&[keys::HOME]);
    assert_eq!(
        browser.text("document.getElementById('slider').getAttribute('aria-valuetext')"),
        "layer 4 alone: lower3"
    );
    browser.click("#unfold");
    let rows = browser.text(ROWS);
    assert!(rows.contains("os-release") && !rows.contains(['+', '~', '−']), "{rows}");
    assert!(browser.text("document.getElementById('found').textContent").ends_with("rows"));
    browser.run("document.getElementById('slider').focus()");
    browser.press(&[keys::RIGHT]);
    browser.run("document.getElementById('tree').scrollTop = 0");
    browser.type_into("#search", "passwd");
    browser.wait("document.getElementById('found').textContent === '1 match'");
    assert_eq!(browser.text(ROWS), "etc/ ~passwd", "changed in layer 3");
    browser.type_into("#search", keys::ESCAPE);
    browser.type_into("#search", "list0");
    browser.wait("document.getElementById('found').textContent === '10 matches'");
    assert!(browser.text(ROWS).contains("−list00"), "deleted in layer 3");
    // A band is a button that does what the slider does.
    browser.click("#bands li:nth-child(3) button");
    assert_eq!(browser.text("document.getElementById('slider').value"), "3");
    browser.wait("document.getElementById('found').textContent === '10 matches, 10 not seen'");

    // Filters: the deleted only.
    browser.type_into("#search", keys::ESCAPE);
    browser.click("#bands li:nth-child(1) button");
    for value in [1, 2, 3] {
        browser.click(&format!("#filter input[value='{value}']"));
    }
    assert_eq!(browser.text(ROWS), "srv/ app/ −main.py");

    // Waste leads to the tree.
    browser.run("document.getElementById('tab-tree').focus()");
    browser.press(&[keys::RIGHT]);
    assert_eq!(browser.text("document.activeElement.id"), "tab-waste");
    assert!(browser.text("document.querySelector('#wastes tr').innerText").contains("/usr/bin/python3"));
    browser.click("#wastes tr:nth-child(2) button");
    assert_eq!(at(), "lists/");
    assert_eq!(browser.text("document.getElementById('slider').value"), "2");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_hundred_thousand_files_do_not_stall_it() {
    let Some(browser) = Browser::start() else { return };
    let stack = Stack::new(2);
    for dir in 0..100 {
        stack.lower(1).dir(format!("d{dir:02}"));
        for file in 0..1000 {
            let place = stack.lower(1).root().join(format!("d{dir:02}/a-file-with-a-name-{file:03}"));
            std::fs::File::create(place).unwrap();
        }
    }
    stack.lower(0).file("d50/a-file-with-a-name-500", "changed");
    let (html, _) = write(&stack, false);
    browser.screen(1440, 900, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    let size = std::fs::metadata(&html).unwrap().len();
    let paint =
        browser.text("Math.round(performance.getEntriesByName('first-contentful-paint')[0].startTime)");
    let measure = |what: &str| {
        let script = format!(
            "const t = performance.now(); {what}; document.getElementById('tree').getBoundingClientRect(); return Math.round(performance.now() - t);"
        );
        browser.run(&script)
    };
    let unfold = measure("document.getElementById('unfold').click()");
    assert_eq!(browser.text("document.getElementById('found').textContent"), "100,100 rows");
    assert!(
        browser.text("document.querySelectorAll('.row').length").parse::<u32>().unwrap() < 100,
        "not virtual"
    );
    let end = measure("document.getElementById('tree').scrollTop = 1e9");
    browser.wait(&format!("{ROWS}.endsWith('a-file-with-a-name-999')"));
    let slide = measure(
        "document.getElementById('slider').value = 1; document.getElementById('slider').dispatchEvent(new Event('input'))",
    );
    let fold = measure("document.getElementById('fold').click()");
    assert_eq!(browser.text("document.getElementById('found').textContent"), "100 rows");
    let one = measure(
        "document.getElementById('tree').scrollTop = 0; document.querySelector('.row .twist').click()",
    );
    browser.type_into("#search", "name-500");
    browser.wait("document.getElementById('found').textContent === '100 matches'");
    let bytes = size / 1024;
    eprintln!(
        "100,100 places, {bytes} KiB: first paint {paint} ms, unfold all {unfold} ms, to the end {end} ms, slide {slide} ms, fold all {fold} ms, unfold one {one} ms"
    );
    // Figures are for a person to read; that a fold takes seconds is a defect on any machine.
    for (what, took) in [
        ("first paint", paint.parse().unwrap()),
        ("fold", fold.as_u64().unwrap()),
        ("unfold", unfold.as_u64().unwrap()),
    ] {
        assert!(took < 10_000, "{what}: {took} ms");
    }
}
