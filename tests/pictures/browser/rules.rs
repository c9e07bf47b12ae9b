//! The page and the walk in a terminal follow the same rules, though each has them in its own language: random stacks look the same.

use super::simulator::layer;
use super::write;
use crate::webdriver::Browser;
use support::model::harness::{cases, seed};
use support::{self, OpaqueForm, Stack, WhiteoutForm};
use unionmount::explain::browse::{Browse, Seen};
use unionmount::explain::names::{bytes, readable};
use unionmount::explain::survey::Survey;
use unionmount::sys::object::Kind;
use unionmount::union::stack::layer::{LowerSource, Stack as OpenStack, StackOptions};

/// The rows in sight: sign, name, size.
const SHOWN: &str = "[...document.querySelectorAll('.row:not([hidden])')]\
    .sort((a, b) => parseInt(a.style.top) - parseInt(b.style.top))\
    .map(r => [0, 2, 5].map(i => r.children[i].textContent).join(' ')).join('\\n')";

/// The same of the walk.
fn rows(browse: &Browse<'_>) -> String {
    let line = |row: &unionmount::explain::browse::Row| {
        let sign = match row.seen {
            Seen::Same => "",
            Seen::Added => "+",
            Seen::Changed => "~",
            Seen::Deleted => "−",
            Seen::Hidden | Seen::Elsewhere => "○",
        };
        let is_file = browse.holding(row.place).is_some_and(|h| h.kind == Some(Kind::File));
        let size = if is_file || row.directory.is_some() { bytes(row.bytes) } else { String::new() };
        let slash = if row.directory.is_some() { "/" } else { "" };
        format!("{sign} {}{slash} {size}", readable(&browse.survey().places[row.place].name))
    };
    browse.rows().iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Puts beside what is random what chance doesn't make: a renamed directory, a file of which only the metadata are in its layer, a
/// file with two names of which one is replaced, and one of which only the mode differs.
fn with_marks(stack: &Stack) {
    let marks = match OpaqueForm::of_process() {
        OpaqueForm::Trusted => "trusted.overlay",
        _ => "user.overlay",
    };
    let mark = |name: &str| format!("{marks}.{name}");
    stack.lower(2).file("old/kept", "33").file("old/replaced", "4444").file("meta", "data of the lower");
    stack.lower(1).file("one", "a file with two names").hardlink("two", "one").file("mode", "the same");
    let top = stack.lower(0);
    top.file("moved/replaced", "new")
        .xattr("moved", &mark("redirect"), "/old")
        .whiteout("old", WhiteoutForm::Device);
    top.sparse("meta", "data of the lower".len() as u64, &[]).xattr("meta", &mark("metacopy"), "");
    top.file("two", "another").file("mode", "the same").mode("mode", 0o600);
}

#[test]
fn the_page_and_the_terminal_show_the_same() {
    let Some(browser) = Browser::start() else { return };
    browser.screen(1280, 2400, false);
    let first = seed(4712);
    for number in 0..u64::from(cases(6)) {
        let mut random = fastrand::Rng::with_seed(first + number);
        let stack = Stack::new(4);
        for lower in stack.lowers() {
            layer(&mut random, lower);
        }
        with_marks(&stack);
        let (html, _) = write(&stack, false);
        browser.open(&html);
        browser.wait("document.documentElement.dataset.ready");
        let lowers = LowerSource::directories(
            stack.lowers().iter().map(|lower| lower.root().to_owned()).collect::<Vec<_>>(),
        );
        let opened = OpenStack::open(&StackOptions { lowers, ..StackOptions::default() }).unwrap();
        let survey = Survey::take(opened, false).unwrap();
        let mut browse = Browse::new(&survey);
        browser.click("#unfold");
        browse.open_all(true);
        for hidden in [false, true] {
            browse.show_hidden(hidden);
            if hidden {
                browser.click("#filter input[value='5']");
            }
            for (mode, alone) in [("pile", false), ("alone", true)] {
                browser.click(&format!("#mode input[value={mode}]"));
                for top in 1..=survey.top() {
                    browser.click(&format!("#bands li:nth-child({}) button", survey.top() + 1 - top));
                    browse.see(top, alone);
                    assert_eq!(
                        browser.text(SHOWN),
                        rows(&browse),
                        "seed {}, layer {top}, alone {alone}, hidden {hidden}: the page on the left",
                        first + number
                    );
                }
            }
        }
    }
}
