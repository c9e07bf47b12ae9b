//! What is found on the page: in all layers, in one, by size; and what it says of itself.

use super::{ROWS, row, stack, write, write_in};
use crate::webdriver::{Browser, keys};

/// A page of a stack in which everything happens.
fn opened(browser: &Browser) -> support::Stack {
    let stack = stack();
    let (html, _) = write(&stack, true);
    browser.screen(1280, 800, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    stack
}

fn part(name: &str, part: &str) -> String {
    format!("{}.querySelector('.{part}').textContent", row(name))
}

#[test]
fn a_search_goes_through_all_layers() {
    let Some(browser) = Browser::start() else { return };
    let _stack = opened(&browser);
    browser.type_into("#search", "list0");
    browser.wait("document.getElementById('found').textContent === '10 matches, 10 not seen'");
    assert!(browser.text(ROWS).contains("○list00"), "{}", browser.text(ROWS));
    assert_eq!(browser.text(&part("list00", "count")), "hidden by layer 3");
    assert_eq!(browser.text(&part("list00", "size")), "39.06 KiB");
    assert!(browser.text(&format!("{}.getAttribute('aria-label')", row("list00"))).contains("hidden"));
    browser.run(&format!("{}.setAttribute('data-test', 'this')", row("list00")));
    browser.click("[data-test=this] .name");
    let history = browser.text("document.getElementById('history').innerText");
    assert!(history.contains("hidden by layer 3: its bytes are wasted"), "{history}");

    // Of layers above the ones that are seen as well.
    browser.type_into("#search", keys::ESCAPE);
    browser.click("#bands li:last-child button");
    browser.type_into("#search", "main.py");
    browser.wait("document.getElementById('found').textContent === '1 match, 1 not seen'");
    assert_eq!(browser.text(&part("main.py", "count")), "above");

    // Without a search they are there on demand.
    browser.type_into("#search", keys::ESCAPE);
    browser.click("#bands li:first-child button");
    assert!(!browser.text(ROWS).contains("list00"));
    browser.click("#filter input[value='5']");
    browser.click("#unfold");
    browser.run("document.getElementById('tree').scrollTop = 1e6");
    browser.wait(&format!("{ROWS}.includes('○list39')"));
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn the_tree_is_sorted_by_its_headings() {
    let Some(browser) = Browser::start() else { return };
    let _stack = opened(&browser);
    browser.click("#fold");
    assert_eq!(browser.text(ROWS), "etc/ +hostile/ srv/ usr/ var/");
    browser.click("#heads [data-by=size]");
    assert!(browser.text(ROWS).starts_with("usr/ srv/ "), "{}", browser.text(ROWS));
    assert_eq!(browser.text("document.querySelector('[data-by=size]').getAttribute('aria-pressed')"), "true");
    browser.click("#heads [data-by=size]");
    assert!(browser.text(ROWS).ends_with(" srv/ usr/"), "{}", browser.text(ROWS));
    browser.click("#heads [data-by=name]");
    browser.click("#heads [data-by=name]");
    assert_eq!(browser.text(ROWS), "var/ usr/ srv/ +hostile/ etc/");
    browser.click("#heads [data-by=changes]");
    assert!(browser.text(ROWS).starts_with("+hostile/ srv/"), "{}", browser.text(ROWS));
    // What is hidden counts where it is shown: the largest comes first though nobody sees it.
    browser.click("#heads [data-by=size]");
    browser.type_into("#search", "li");
    browser.wait("document.getElementById('found').textContent.includes('not seen')");
    assert!(browser.text(ROWS).contains("○list39 ○list38"), "{}", browser.text(ROWS));
}

#[test]
fn one_layer_is_looked_at_alone() {
    let Some(browser) = Browser::start() else { return };
    let _stack = opened(&browser);
    browser.click("#mode input[value=alone]");
    browser.click("#bands li:nth-child(2) button");
    assert_eq!(browser.text(ROWS), "srv/ app/ ~app.conf ~assets/ +new.svg usr/ bin/ ~python3");
    assert_eq!(browser.text(&part("app.conf", "count")), "hidden by the upper");
    assert!(browser.text("document.getElementById('seen').textContent").starts_with("layer 1, nothing else"));
    browser.click("#bands li:nth-child(1) button");
    assert!(
        browser.text(ROWS).ends_with("srv/ app/ ~app.conf +log/ +today −main.py"),
        "{}",
        browser.text(ROWS)
    );
    browser.type_into("#search", "passwd");
    browser.wait("document.getElementById('found').textContent === '1 match, 1 not seen'");
    assert_eq!(browser.text(&part("passwd", "count")), "in layer 3");
    browser.type_into("#search", keys::ESCAPE);
    browser.click("#mode input[value=pile]");
    assert!(browser.text(ROWS).contains("os-release"));
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_layer_has_one_colour_everywhere() {
    let Some(browser) = Browser::start() else { return };
    let _stack = opened(&browser);
    let colours = browser.text(&format!(
        "(() => {{ const r = {}; r.click(); return [getComputedStyle(r.querySelector('.chip .spot')).backgroundColor, \
          getComputedStyle(document.querySelector('#bands li:last-child button')).borderLeftColor, \
          getComputedStyle(document.querySelector('#history .spot')).backgroundColor, \
          getComputedStyle([...document.querySelectorAll('#canvas .um-layer')].filter(s => s.getAttribute('width') === '7').pop()).fill]; }})()",
        row("os-release")
    ));
    let each: Vec<&str> = colours.split(",rgb").collect();
    assert!(each.len() == 4 && each.iter().all(|c| c.trim_start_matches("rgb") == each[1]), "{colours}");
}

#[test]
fn the_page_says_what_it_shows() {
    let Some(browser) = Browser::start() else { return };
    let stack = opened(&browser);
    let facts = browser.text("document.getElementById('facts').innerText.replaceAll('\\n', ' ')");
    assert!(
        facts.contains("Directories") && facts.contains(stack.upper().root().to_str().unwrap()),
        "{facts}"
    );
    assert!(facts.contains(" by unionmount layers --lower "), "{facts}");
    browser.type_into("#search", "python");
    browser.wait("document.getElementById('found').textContent.includes('match')");
    assert_eq!(browser.text(&part("python", "target")), "→ /usr/bin/python3");
}

/// Waste is told by its causes, as `layers` tells it, and leads to the tree.
#[test]
fn waste_is_told_by_its_causes() {
    let Some(browser) = Browser::start() else { return };
    let _stack = opened(&browser);
    browser.click("#tab-waste");
    let said = browser.text("document.getElementById('causes').innerText.replaceAll('\\n', ' ')");
    for part in [
        "5.72 MiB, 1 file /usr/bin/python3 replaced by another version",
        "made in layer 3: lower2",
        "wasted in layer 1: lower0",
        "MiB, 40 files /var/lib/apt/lists/",
        "package lists and caches, deleted in a later step",
        "saved by: delete in the step that makes it, with && in one RUN",
        // Deleted and made anew, so opaque.
        "29.30 KiB, 1 file /srv/app/assets/ deleted in a later step",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    browser.run("[...document.querySelectorAll('#causes button')].find((b) => b.textContent.includes('lists')).click()");
    assert_eq!(browser.text("document.getElementById('slider').value"), "2");
    assert_eq!(browser.text("document.querySelector('#history code').textContent"), "/var/lib/apt/lists");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

/// All of it in another language, of the one catalogue.
#[test]
fn the_page_speaks_chinese() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let html = write_in(&stack, &["--lang", "zh"]);
    browser.screen(1280, 800, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    assert_eq!(browser.text("document.documentElement.lang"), "zh");
    browser.type_into("#search", "list0");
    browser.wait("document.getElementById('found').textContent === '找到 10 个，其中 10 个看不到'");
    assert_eq!(browser.text(&part("list00", "count")), "被第 3 层遮住");
    browser.run(&format!("{}.setAttribute('data-test', 'this')", row("list00")));
    browser.click("[data-test=this] .name");
    let english = "(document.body.innerText + [...document.querySelectorAll('[aria-label], [title], [placeholder]')]\
        .map((e) => [e.getAttribute('aria-label'), e.title, e.placeholder].join(' ')).join(' ')).match(/[a-z]{3,} [a-z]{2,} [a-z]{2,}/g)";
    for (tab, said) in [
        ("tree", "被第 3 层遮住：空间被浪费"),
        ("waste", "产生于第 4 层：lower3"),
        ("picture", "透出到合并视图"),
    ] {
        browser.click(&format!("#tab-{tab}"));
        let text = browser.text("document.body.innerText");
        let svg = browser.text("document.querySelector('#canvas svg').textContent");
        assert!(text.contains(said) || svg.contains(said), "{said} is not in {text}");
        super::looking::axe(&browser);
        browser.shot(&format!("zh-{tab}"));
    }
    // The command, which is shown as it was typed, has paths and options alone.
    let left = browser.text(english);
    assert!(
        left == "null" || left.split(',').all(|words| words.contains("unionmount")),
        "English is left: {left}"
    );
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}
