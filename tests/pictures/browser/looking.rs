//! The page and the picture as they look: on three screens, light and dark, and to who doesn't see them.

use super::{ROWS, row, stack, write};
use crate::webdriver::Browser;
use support::{self, Stack};

/// A small laptop, a tablet, a phone.
pub(super) const SIZES: [(&str, u32, u32, bool); 3] =
    [("wide", 1280, 800, false), ("tablet", 768, 1024, false), ("phone", 390, 844, true)];

/// Asks axe-core, which `scripts/check pictures` names, what it finds.
#[track_caller]
pub(super) fn axe(browser: &Browser) {
    let Some(file) = std::env::var_os("UNIONMOUNT_AXE") else {
        support::skipped("no axe-core: scripts/check pictures names it by UNIONMOUNT_AXE");
        return;
    };
    let axe = std::fs::read_to_string(file).unwrap();
    browser.run(&format!("if (!window.axe) {{ {axe} }}"));
    let found = browser.run_until_told(
        "axe.run().then((result) => done(result.violations.map((v) => v.id + ': ' + v.help + ': ' + \
           v.nodes.slice(0, 3).map((n) => n.target + ' ' + n.failureSummary).join(' | ')).join('\\n')), \
           (error) => done('axe: ' + error))",
    );
    assert_eq!(found, "", "axe-core finds something");
}

#[test]
fn the_page_looks_well() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let (html, svg) = write(&stack, true);
    for (size, width, height, mobile) in SIZES {
        for scheme in ["light", "dark"] {
            browser.screen(width, height, mobile);
            browser.scheme(scheme);
            browser.open(&html);
            browser.wait("document.documentElement.dataset.ready");
            assert_eq!(browser.text("document.documentElement.dataset.theme"), scheme);
            let wide = browser.text("document.documentElement.scrollWidth");
            assert!(wide.parse::<u32>().unwrap() <= width, "{wide} wide on {width}");
            axe(&browser);
            browser.run("document.getElementById('tree').scrollIntoView()");
            browser.click(&format!("#{}", browser.text(&format!("{}.id", row("passwd")))));
            browser.run("scrollTo(0, 0)");
            browser.shot(&format!("tree-{size}-{scheme}"));
            if mobile {
                browser.run("document.getElementById('tree').scrollIntoView()");
                browser.shot(&format!("tree-{size}-{scheme}-2"));
                browser.click("#lower");
            }
            for tab in ["waste", "picture"] {
                browser.click(&format!("#tab-{tab}"));
                axe(&browser);
                browser.shot(&format!("{tab}-{size}-{scheme}"));
            }
            let wide = browser.text("document.documentElement.scrollWidth");
            assert!(wide.parse::<u32>().unwrap() <= width, "{wide} wide on {width}");
        }
    }
    browser.screen(1440, 900, false);
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        browser.open(&svg);
        browser.shot(&format!("svg-{scheme}"));
    }
    assert_eq!(browser.text("document.documentElement.localName"), "svg");
    // No text is wider than its box, and nothing lies outside the picture.
    let outside = browser.text(
        "[...document.querySelectorAll('g')].filter(g => { \
           const boxes = [...g.querySelectorAll('.um-box')]; \
           return [...g.querySelectorAll('text')].some(t => t.getBBox().width > 122) || boxes.some(b => b.getBBox().x < 0); \
         }).map(g => g.textContent).join(';') + \
         [...document.querySelectorAll('text')].filter(t => { const b = t.getBBox(), v = document.documentElement.viewBox.baseVal; \
           return b.x < 0 || b.y < 0 || b.x + b.width > v.width || b.y + b.height > v.height; }).map(t => t.textContent).join(';')",
    );
    assert_eq!(outside, "");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

/// The size of the letters of the picture, on the screen.
const LETTERS: &str = "(() => { const t = document.querySelector('#canvas text.um-quiet'); \
    return parseFloat(getComputedStyle(t).fontSize) * document.querySelector('#canvas svg').getBoundingClientRect().width \
      / document.querySelector('#canvas svg').viewBox.baseVal.width; })()";

#[test]
fn the_picture_is_readable_and_moves() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let (html, _) = write(&stack, true);
    browser.screen(1280, 800, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    browser.click("#tab-picture");
    let number = |expression: &str| browser.text(expression).parse::<f64>().unwrap();
    assert!(number(LETTERS) >= 9.5, "{} px", number(LETTERS));
    for words in ["shines through", "whiteout", "leads to what is replaced", "a colour is a layer"] {
        assert!(browser.text("document.querySelector('#canvas svg').textContent").contains(words), "{words}");
    }
    // Larger, and then it is moved: by the mouse, and by keys as anything that scrolls.
    let before = number(LETTERS);
    for _ in 0..4 {
        browser.click("#larger");
    }
    assert!(number(LETTERS) > 2.0 * before);
    browser.drag("#canvas", -200, -100);
    assert!(number("document.getElementById('canvas').scrollLeft") > 150.0);
    browser.click("#fit");
    let outside = "(() => { const c = document.getElementById('canvas'); \
        return Math.max(c.scrollWidth - c.clientWidth, c.scrollHeight - c.clientHeight); })()";
    assert!(number(outside) <= 1.0, "{} px lie outside", number(outside));
    browser.run("document.getElementById('canvas').focus()");
    let before = number(LETTERS);
    browser.press(&["+"]);
    assert!(number(LETTERS) > before);
    // The tree has its neighbours again.
    browser.click("#tab-tree");
    assert_eq!(browser.text("document.getElementById('pile').offsetWidth > 100"), "true");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}

#[test]
fn a_tap_on_a_phone_shows_the_history() {
    let Some(browser) = Browser::start() else { return };
    let stack = stack();
    let (html, _) = write(&stack, true);
    browser.screen(390, 844, true);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    assert_eq!(browser.text("getComputedStyle(document.getElementById('detail')).display"), "none");
    browser.run("document.getElementById('tree').scrollIntoView()");
    browser.click(&format!("#{}", browser.text(&format!("{}.id", row("passwd")))));
    let seen = "(() => { const b = document.querySelector('#history li').getBoundingClientRect(); \
        return b.height > 0 && b.top >= 0 && b.bottom <= innerHeight; })()";
    assert_eq!(browser.text(seen), "true", "the history is not on the screen");
    assert_eq!(browser.text("document.querySelector('#history code').textContent"), "/etc/passwd");
    browser.click("#lower");
    assert_eq!(browser.text("getComputedStyle(document.getElementById('detail')).display"), "none");
}

#[test]
fn where_nothing_is_the_page_says_so() {
    let Some(browser) = Browser::start() else { return };
    let stack = Stack::new(2);
    let (html, _) = write(&stack, false);
    browser.screen(1280, 800, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    let empty = || browser.text("document.getElementById('empty').innerText");
    assert_eq!(empty(), "These layers hold nothing.");
    browser.click("#tab-waste");
    assert!(browser.text("document.getElementById('view-waste').innerText").contains("Nothing is wasted"));
    assert_eq!(browser.text("document.getElementById('waste-table').hidden"), "true");
    browser.click("#tab-picture");
    axe(&browser);
    browser.shot("empty-picture");

    let stack = Stack::new(2);
    stack.lower(1).file("a", "1").file("b", "2");
    stack.lower(0).whiteout("a", support::WhiteoutForm::Device).whiteout("b", support::WhiteoutForm::Device);
    let (html, _) = write(&stack, false);
    browser.open(&html);
    browser.wait("document.documentElement.dataset.ready");
    assert_eq!(browser.text(ROWS), "−a −b");
    browser.type_into("#search", "nothing-is-called-so");
    browser.wait("document.getElementById('found').textContent === '0 matches'");
    assert_eq!(empty(), "Nothing in any layer is called so.");
    browser.type_into("#search", crate::webdriver::keys::ESCAPE);
    browser.click("#filter input[value='4']");
    assert_eq!(empty(), "Nothing to show with these filters.");
    browser.shot("empty-filter");
    assert_eq!(browser.complaints(), Vec::<serde_json::Value>::new());
}
