//! The README and the manual are true: what they say to type works, prints what they say, and leads where they say.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../benches/peers/picture.rs"]
#[allow(dead_code, unreachable_pub)] // the bench has uses for all of it
mod picture;

use support::cli::{Ended, Place, is_root, run};

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The pages: README, CONTRIBUTING and the manual.
fn pages() -> BTreeMap<PathBuf, String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = fs::read_dir(top.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    manual
        .chain(["README.md", "CONTRIBUTING.md"].map(|name| top.join(name)))
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The fenced blocks of a chapter: language and text.
fn blocks(page: &str, chapter: &str) -> Vec<(String, String)> {
    let from = page.split_once(&format!("\n{chapter}\n")).unwrap_or_else(|| panic!("{chapter} is there")).1;
    let level = chapter.split(' ').next().unwrap();
    let text = from.split(&format!("\n{level} ")).next().unwrap();
    let mut blocks = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (language, content) = block.split_once('\n').unwrap();
        blocks.push((language.to_owned(), content.to_owned() + "\n"));
    }
    blocks
}

/// Dates and times are those of today.
fn undated(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some(at) = rest.find("20").filter(|&at| is_date(&rest[at..])) {
            out += &rest[..at];
            out += "YYYY-MM-DD HH:MM";
            rest = &rest[at + 16..];
        }
        out += rest.trim_end();
        out.push('\n');
    }
    out
}

fn is_date(text: &str) -> bool {
    let form = b"dddd-dd-dd dd:dd";
    text.len() >= form.len()
        && text.bytes().zip(form).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

/// Types `script` into a shell, in a scratch directory with the program in its PATH.
fn typed(place: &Place, shell: &[&str], script: &str) -> Ended {
    fs::write(place.at("typed"), script).unwrap();
    let mut command = Command::new("sh");
    let line = format!("PATH=$PWD:$PATH exec {} <typed 2>&1", shell.join(" "));
    run(command.args(["-c", &line]).current_dir(place.path()).env("UNIONMOUNT_ROOT", place.at("store")))
}

fn session() -> String {
    let readme = page("README.md");
    ["## A first session", "## Images"]
        .iter()
        .flat_map(|chapter| blocks(&readme, chapter))
        // The lesson wants somebody who answers.
        .filter(|(language, text)| language == "sh" && text != "unionmount demo\n")
        .map(|(_, text)| text)
        .collect()
}

#[test]
fn the_readmes_session_prints_what_it_says() {
    if !is_root() {
        support::skip!("needs root");
    }
    let readme = page("README.md");
    let place = Place::new();
    for name in ["a", "b", "up", "mnt"] {
        fs::remove_dir(place.at(name)).unwrap();
    }
    let ended = typed(&place, &["sh"], &session());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let out = undated(&ended.out);
    for (_, told) in
        blocks(&readme, "## A first session").into_iter().filter(|(language, _)| language == "text")
    {
        assert!(out.contains(&undated(&told)), "{told}\nis not in\n{out}");
    }
    for told in ["port = 8080\n", "app.conf\n", "0, 0", "C /etc\nA /etc/app.conf\n", "Untagged: demo:2\n"] {
        assert!(out.contains(told), "{told:?} is not in\n{out}");
    }
    assert_eq!(fs::read_to_string(place.at("patch/etc/app.conf")).unwrap(), "port = 8080\n");
    assert!(fs::read_to_string(place.at("layers.svg")).unwrap().starts_with("<svg"));
    place.wait_for_no_daemon();
}

#[test]
fn the_readmes_session_can_be_typed_into_zsh() {
    if !is_root() {
        support::skip!("needs root");
    }
    if !Path::new("/usr/bin/zsh").exists() {
        support::skip!("needs the package zsh");
    }
    let place = Place::new();
    for name in ["a", "b", "up", "mnt"] {
        fs::remove_dir(place.at(name)).unwrap();
    }
    // As an interactive one reads it: a # is no comment.
    let ended = typed(&place, &["zsh", "-f", "-o", "no_interactive_comments", "-i"], &session());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("Untagged: demo:2"), "{ended:?}");
    assert!(!session().contains('#'));
    place.wait_for_no_daemon();
}

#[test]
fn the_chapter_on_snapshots_can_be_typed() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for name in ["a", "b", "up", "mnt"] {
        fs::remove_dir(place.at(name)).unwrap();
    }
    let layers: String = blocks(&page("README.md"), "## A first session")[0]
        .1
        .lines()
        .take_while(|line| !line.starts_with("unionmount "))
        .map(|line| format!("{line}\n"))
        .collect();
    let told = blocks(&format!("\n{}", page("docs/snapshots.md")), "# Snapshots");
    let typed_in: String =
        told.iter().filter(|(language, _)| language == "sh").map(|(_, text)| &text[..]).collect();
    let ended = typed(&place, &["sh", "-e"], &format!("{layers}{typed_in}umount mnt\n"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (_, printed) in told.iter().filter(|(language, _)| language == "text") {
        assert!(ended.out.contains(&printed[..]), "{printed} is not in {ended:?}");
    }
    for told in ["before-upgrade", "below"] {
        assert!(ended.out.contains(told), "{told} is not in {ended:?}");
    }
    place.wait_for_no_daemon();
}

#[test]
fn the_chinese_readme_says_to_type_the_same_and_prints_what_it_says() {
    if !is_root() {
        support::skip!("needs root");
    }
    let chapter = blocks(&page("docs/README.zh.md"), "## 第一次使用");
    assert_eq!(chapter[0], blocks(&page("README.md"), "## A first session")[0]);
    let place = Place::new();
    fs::remove_dir(place.at("mnt")).unwrap();
    let script: String =
        chapter.iter().filter(|(language, _)| language == "sh").map(|(_, text)| &text[..]).collect();
    // explain ends so where the path isn't there.
    let ended = typed(&place, &["sh"], &script);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let told = undated(&chapter.iter().find(|(language, _)| language == "text").unwrap().1);
    let out = undated(&ended.out);
    assert!(out.contains(&told), "{told}\nis not in\n{out}");
    place.wait_for_no_daemon();
}

#[test]
fn the_worksheets_solutions_are_true() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    for name in ["a", "b", "up", "mnt"] {
        fs::remove_dir(place.at(name)).unwrap();
    }
    let sheet = page("docs/worksheet.md");
    let told: Vec<(String, String)> =
        ["## Prepare", "## Solutions"].iter().flat_map(|chapter| blocks(&sheet, chapter)).collect();
    let script: String =
        told.iter().filter(|(language, _)| language == "sh").map(|(_, text)| &text[..]).collect();
    let ended = typed(&place, &["sh", "-e"], &script);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (_, printed) in told.iter().filter(|(language, _)| language == "text") {
        assert!(ended.out.contains(&printed[..]), "{printed} is not in {}", ended.out);
    }
    for printed in ["0, 0", "debian\n", "\trw/srv/large"] {
        assert!(ended.out.contains(printed), "{printed:?} is not in {}", ended.out);
    }
    place.wait_for_no_daemon();
}

#[test]
fn explain_prints_what_the_manual_says() {
    if !is_root() {
        support::skip!("needs root");
    }
    let place = Place::new();
    fs::remove_dir(place.at("mnt")).unwrap();
    let first = &blocks(&page("README.md"), "## A first session")[0].1;
    let mounted: String =
        first.lines().take_while(|line| !line.starts_with("cat ")).map(|line| format!("{line}\n")).collect();
    let (_, told) = blocks(&page("docs/watching.md"), "## explain")
        .into_iter()
        .find(|(language, _)| language == "console")
        .unwrap();
    let mut script = mounted;
    let mut expected = Vec::new();
    for line in told.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => {
                script += &format!("{command}\n");
                expected.push(String::new());
            }
            None => *expected.last_mut().unwrap() += &format!("{line}\n"),
        }
    }
    let ended = typed(&place, &["bash"], &format!("{script}umount mnt\n"));
    let out = undated(&ended.out);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for told in expected {
        assert!(out.contains(undated(&told).trim_end()), "{told}\nis not in\n{out}");
    }
    place.wait_for_no_daemon();
}

#[test]
fn the_readme_is_short_and_links_lead_somewhere() {
    assert!(page("README.md").lines().count() <= 200);
    let slug = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    let pages = pages();
    for (path, text) in &pages {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let target = fs::read_to_string(&target).unwrap();
                let headings = target.lines().filter(|line| line.starts_with('#'));
                let there =
                    headings.map(|line| slug(line.trim_start_matches('#').trim())).any(|at| at == anchor);
                assert!(there, "{}: {link}", path.display());
            }
        }
    }
    // All pages of the manual are in its list.
    let summary = page("docs/SUMMARY.md");
    for path in pages.keys().filter(|path| path.parent().unwrap().ends_with("docs")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || summary.contains(name), "{name} is not in SUMMARY.md");
    }
}

/// Every name in docs/security.md that can only be one of a test: words joined by underscores, four or more.
fn tests_named(page: &str) -> Vec<&str> {
    let is_one = |word: &&str| {
        let plain = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        plain && word.matches('_').count() >= 3
    };
    page.split('`').skip(1).step_by(2).filter(is_one).collect()
}

fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn tests_that_the_manual_names_are_there() {
    let mut text = String::new();
    for dir in ["src", "tests"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut text);
    }
    for name in ["docs/security.md", "docs/power-failures.md"] {
        for test in tests_named(&page(name)) {
            let at = text.find(&format!("fn {test}("));
            let at = at.unwrap_or_else(|| panic!("{name} names {test}, which is no test"));
            assert!(text[..at].trim_end().ends_with(']'), "{test} is no test");
        }
    }
    let page = page("docs/security.md");
    // Each row of the tables of what is tried, and each point of a list of what can't be done, ends in its test.
    for line in page.lines().filter(|line| line.starts_with("| ") && line.matches('|').count() == 4) {
        let last = line.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        assert!(last.contains("test") || !tests_named(last).is_empty(), "without a test: {line}");
    }
}

/// A line of docs/suites.tsv: what a suite said of a mode.
#[derive(Debug, Clone)]
struct Said {
    suite: String,
    mode: String,
    /// Cases, those that pass, aren't run, fail here alone, and do so without a known reason.
    numbers: [u32; 5],
}

fn said_by_suites() -> Vec<Said> {
    let table = page("docs/suites.tsv");
    let rows = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    let said = |line: &str| -> Said {
        let fields: Vec<&str> = line.split('\t').collect();
        let numbers: Vec<u32> = fields[2..].iter().map(|number| number.parse().expect(line)).collect();
        let numbers = numbers.try_into().unwrap_or_else(|_| panic!("{line}: seven fields"));
        Said { suite: fields[0].to_owned(), mode: fields[1].to_owned(), numbers }
    };
    rows.map(said).collect()
}

/// In so many words, a clause a suite.
fn suites_in_short(said: &[Said]) -> String {
    let mut suites: Vec<&str> = said.iter().map(|said| &*said.suite).collect();
    suites.dedup();
    let clauses = suites.iter().map(|suite| {
        let of_it: Vec<&Said> = said.iter().filter(|said| said.suite == *suite).collect();
        let [cases, pass, not_run, fail, _] = of_it[0].numbers;
        let unexplained: u32 = of_it.iter().map(|said| said.numbers[4]).sum();
        let how = match of_it.len() {
            1 => "one way to mount".to_owned(),
            ways => format!("{ways} ways to mount"),
        };
        format!(
            "{suite} {pass} of {cases} pass, {not_run} don't apply, {fail} fail ({unexplained} unexplained in {how})"
        )
    });
    clauses.collect::<Vec<_>>().join("; ")
}

/// As a table, a row a suite and the modes of which it said the same.
fn suites_as_a_table(said: &[Said]) -> String {
    let mut rows: Vec<(Said, Vec<String>)> = Vec::new();
    for one in said {
        match rows.iter_mut().find(|(row, _)| row.suite == one.suite && row.numbers == one.numbers) {
            Some((_, modes)) => modes.push(one.mode.clone()),
            None => rows.push((one.clone(), vec![one.mode.clone()])),
        }
    }
    let row = |(said, modes): &(Said, Vec<String>)| {
        let [cases, pass, not_run, fail, unexplained] = said.numbers;
        let modes = modes.join("`, `");
        format!("| {} | `{modes}` | {cases} | {pass} | {not_run} | {fail} | {unexplained} |\n", said.suite)
    };
    let head = "| suite | modes | cases | pass | not run | fail here alone | without a reason |\n|---|---|---|---|---|---|---|\n";
    head.to_owned() + &rows.iter().map(row).collect::<String>()
}

/// What the README and the manual say of the suites is what these said: docs/suites.tsv, which scripts/conformance and
/// scripts/suites write.
#[test]
fn what_is_said_of_the_suites_is_what_they_said() {
    let said = said_by_suites();
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short = suites_in_short(&said);
    assert!(one_line(&page("README.md")).contains(&short), "README.md must have:\n{short}");
    let table = suites_as_a_table(&said);
    assert!(page("docs/testing.md").contains(&table), "docs/testing.md must have:\n{table}");
}

/// The picture of the speed is the table, drawn; and what the README says of it is in the table.
#[test]
fn the_picture_of_the_speed_is_the_table() {
    let chapter = page("docs/performance.md");
    assert!(
        picture::draw(&chapter) == page("benches/peers.svg"),
        "another picture than the table's: scripts/bench --draw docs/performance.md >benches/peers.svg"
    );
    let readme = page("README.md");
    let rows = readme.split_once("| fuse-overlayfs 2.0 |\n").unwrap().1.lines().skip(1);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 5);
    for row in rows {
        let numbers = |line: &str| -> Vec<f64> {
            let words = line.split(['|', ' ', '(', ')']).filter_map(|word| word.parse().ok());
            words.collect()
        };
        let told = numbers(row.splitn(3, '|').nth(2).unwrap());
        assert!(!told.is_empty(), "{row}");
        let known = chapter
            .lines()
            .map(numbers)
            .find(|known| told.iter().all(|told| known.iter().any(|known| (known - told).abs() <= 0.05)));
        assert!(known.is_some(), "the chapter on performance has no row of these: {row}");
    }
}
