//! Texts in lines as long as the terminal allows.

use unicode_linebreak::{BreakOpportunity, linebreaks};
use unicode_width::UnicodeWidthStr;

/// What a line that isn't running text is continued by.
const HANGING: usize = 4;
/// No line is shorter than this, however narrow the terminal is.
const LEAST: usize = 12;

/// Returns the lines of a text, none wider than `columns` where it can be broken.
///
/// In a text, a line break is a space, or, between Chinese characters, nothing; an empty line parts paragraphs; a line
/// that begins with a space stands alone, and is continued further to the right.
///
/// ```
/// use unionmount::texts::wrap::wrap;
/// assert_eq!(wrap("one two\nthree", 8), ["one two", "three"]);
/// assert_eq!(wrap("写时复制，\nCOW 的\n全称。", 80), ["写时复制，COW 的全称。"]);
/// ```
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut running = String::new();
    for line in text.trim_end().lines() {
        if line.trim().is_empty() || line.starts_with(' ') {
            flow(&std::mem::take(&mut running), columns, "", &mut lines);
            if line.trim().is_empty() {
                lines.push(String::new());
            } else {
                let indent = line.len() - line.trim_start().len();
                flow(line, columns, &" ".repeat(indent + HANGING), &mut lines);
            }
            continue;
        }
        if let (Some(last), Some(next)) = (running.chars().last(), line.chars().next())
            && !(is_wide(last) && is_wide(next) || is_wide_sign(last) || is_wide_sign(next))
        {
            running.push(' ');
        }
        running += line;
    }
    flow(&running, columns, "", &mut lines);
    lines
}

/// Tells whether no space parts a character from others like it: it is Chinese, or of a script that is written so.
fn is_wide(c: char) -> bool {
    u32::from(c) >= 0x2e80
}

/// Tells whether a character is punctuation that brings its own space.
fn is_wide_sign(c: char) -> bool {
    matches!(c, '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}')
}

fn flow(text: &str, columns: usize, indent: &str, lines: &mut Vec<String>) {
    if text.is_empty() {
        return;
    }
    let columns = columns.max(LEAST + indent.len());
    let (mut line, mut from) = (String::new(), 0);
    // Neither options nor paths are taken apart.
    let parts = |at: &usize| {
        let wide = |c: Option<char>| c.is_some_and(is_wide);
        text[..*at].ends_with(char::is_whitespace)
            || wide(text[..*at].chars().next_back())
            || wide(text[*at..].chars().next())
    };
    for (at, kind) in linebreaks(text).filter(|(at, kind)| *kind == BreakOpportunity::Mandatory || parts(at))
    {
        let part = &text[from..at];
        if !line.trim().is_empty() && line.width() + part.trim_end().width() > columns {
            lines.push(line.trim_end().to_owned());
            line = indent.to_owned();
        }
        line += part;
        from = at;
        if kind == BreakOpportunity::Mandatory {
            lines.push(line.trim_end().to_owned());
            line = indent.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let text = "A layer is a plain directory. Here are three of them,\nand 这里有三层：底层是一个小系统，中层加上程序的设置，（上层）带来新版本。\n\n  unionmount explain PATH    why a path looks as it does";
        for columns in 20..100 {
            for line in wrap(text, columns) {
                assert!(line.width() <= columns, "{columns}: {line}");
                let first = line.chars().next();
                assert!(!first.is_some_and(|c| "，。：；）".contains(c)), "{columns}: {line}");
                assert!(!line.ends_with('（'), "{columns}: {line}");
            }
        }
    }

    #[test]
    fn paragraphs_and_what_stands_alone_stay_so() {
        let text = "one\ntwo\n\n  a line that stands alone\nthree";
        assert_eq!(wrap(text, 80), ["one two", "", "  a line that stands alone", "three"]);
        assert_eq!(wrap(text, 20)[2..], ["  a line that stands", "      alone", "three"]);
        assert_eq!(wrap("say --max-waste or a/path/of/it", 16), ["say --max-waste", "or a/path/of/it"]);
        assert_eq!(wrap("", 80), [""; 0]);
    }
}
