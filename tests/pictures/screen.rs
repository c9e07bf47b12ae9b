//! What a terminal shows, as SVG: the pictures of the manual are the program's real output.
//!
//! tmux tells the screen as lines of text with the colours as escape sequences (`capture-pane -e`); each run of one look becomes a
//! `tspan` at its column, so that another font doesn't move it.

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

const WIDE: f64 = 7.8;
const HIGH: f64 = 17.0;
const MARGIN: f64 = 12.0;

/// How text looks: ECMA-48's "select graphic rendition", as far as the program uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    bold: bool,
    dim: bool,
    italic: bool,
    underlined: bool,
    crossed: bool,
    reversed: bool,
    colour: Option<u8>,
}

impl Look {
    fn take(&mut self, codes: &str) {
        let mut codes = codes.split([';', ':']).map(|code| code.parse::<u8>().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Look::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                9 => self.crossed = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                27 => self.reversed = false,
                29 => self.crossed = false,
                30..=37 => self.colour = Some(code - 30),
                90..=97 => self.colour = Some(code - 90 + 8),
                38 => self.colour = codes.next().filter(|kind| *kind == 5).and_then(|_| codes.next()),
                39 => self.colour = None,
                _ => {}
            }
        }
    }

    fn classes(self) -> String {
        let words = [
            (self.bold, "b"),
            (self.dim, "d"),
            (self.italic, "i"),
            (self.underlined, "u"),
            (self.crossed, "x"),
            (self.reversed, "r"),
        ];
        let mut classes: Vec<String> =
            words.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect();
        classes.extend(self.colour.filter(|colour| *colour < 16).map(|colour| format!("c{colour}")));
        classes.join(" ")
    }
}

/// Cuts a line into runs of one look.
fn runs(line: &str, look: &mut Look) -> Vec<(Look, String)> {
    let mut runs: Vec<(Look, String)> = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        if let Some(escape) = rest.strip_prefix("\x1b[")
            && let Some((codes, after)) = escape.split_once('m')
            && codes.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':')
        {
            look.take(codes);
            rest = after;
            continue;
        }
        let next = rest.char_indices().skip(1).find(|(_, c)| *c == '\x1b');
        let end = next.map_or(rest.len(), |(at, _)| at);
        let text: String = rest[..end].chars().filter(|c| !c.is_control()).collect();
        runs.push((*look, text));
        rest = &rest[end..];
    }
    runs
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One of the terminal's 256 colours beyond the first 16.
fn of_cube(colour: u8) -> String {
    if colour >= 232 {
        let grey = 8 + 10 * (colour - 232);
        return format!("#{grey:02x}{grey:02x}{grey:02x}");
    }
    let level = |part: u8| if part == 0 { 0 } else { 55 + 40 * part };
    let at = colour - 16;
    format!("#{:02x}{:02x}{:02x}", level(at / 36), level(at / 6 % 6), level(at % 6))
}

/// The looks; light or dark as the reader's system is.
const STYLE: &str = "\
.t{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:var(--i);white-space:pre}\
svg{--p:#fff;--i:#1c2330;--e:#c3ccda;--d:#5b6678;--red:#b42318;--green:#116329;--yellow:#7a4f00;--blue:#1f5fd0;--cyan:#0b6b78;--grey:#626b7a}\
@media(prefers-color-scheme:dark){svg{--p:#12161d;--i:#e6ebf3;--e:#38445a;--d:#9aa7ba;--red:#ff8f85;--green:#5fd38a;--yellow:#f0c04f;--blue:#7fb0ff;--cyan:#59c8d6;--grey:#96a1b3}}\
.paper{fill:var(--p);stroke:var(--e)}.b{font-weight:700}.d{fill:var(--d)}.i{font-style:italic}.u{text-decoration:underline}.x{text-decoration:line-through}\
.c1,.c9{fill:var(--red)}.c2,.c10{fill:var(--green)}.c3,.c11{fill:var(--yellow)}.c4,.c12{fill:var(--blue)}.c6,.c14{fill:var(--cyan)}.c8{fill:var(--grey)}\
.back{fill:var(--i)}.r{fill:var(--p)}";

/// Draws a screen. `says` is for who doesn't see it.
pub fn draw(screen: &str, says: &str) -> String {
    let lines: Vec<&str> = screen.trim_end().lines().collect();
    let mut look = Look::default();
    let lines: Vec<Vec<(Look, String)>> = lines.iter().map(|line| runs(line, &mut look)).collect();
    let columns =
        lines.iter().map(|line| line.iter().map(|(_, text)| text.width()).sum::<usize>()).max().unwrap_or(0);
    let (width, height) = (2.0 * MARGIN + columns as f64 * WIDE, 2.0 * MARGIN + lines.len() as f64 * HIGH);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-labelledby=\"t\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n\
         <title id=\"t\">{}</title><style>{STYLE}</style>\n<rect class=\"paper\" x=\".5\" y=\".5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\"/>\n",
        escape(says),
        width - 1.0,
        height - 1.0
    );
    for (at, line) in lines.iter().enumerate() {
        let top = MARGIN + at as f64 * HIGH;
        let mut column = 0;
        let mut text = String::new();
        for (look, run) in line {
            let x = MARGIN + column as f64 * WIDE;
            let wide = run.width();
            column += wide;
            if look.reversed {
                writeln!(
                    svg,
                    "<rect class=\"back\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{HIGH}\"/>",
                    wide as f64 * WIDE
                )
                .unwrap();
            } else if run.trim().is_empty() {
                continue;
            }
            let fill = look
                .colour
                .filter(|colour| *colour >= 16 && !look.reversed)
                .map(|colour| format!(" fill=\"{}\" style=\"fill:{0}\"", of_cube(colour)));
            let length = wide as f64 * WIDE;
            write!(
                text,
                "<tspan x=\"{x:.1}\" textLength=\"{length:.1}\" class=\"{}\"{}>{}</tspan>",
                look.classes(),
                fill.unwrap_or_default(),
                escape(run)
            )
            .unwrap();
        }
        if !text.is_empty() {
            writeln!(svg, "<text class=\"t\" y=\"{:.1}\">{text}</text>", top + 12.5).unwrap();
        }
    }
    svg + "</svg>\n"
}

/// What a picture says, without what differs from run to run: numbers, and how wide they are.
pub fn shape(svg: &str) -> Vec<String> {
    let mut lines = Vec::new();
    // Lines of text, or, in a picture of another kind, each text.
    for text in svg.split("</text>").filter_map(|part| part.split_once("<text")).map(|(_, text)| text) {
        let (mut said, mut within) = (String::new(), true);
        for c in text.chars() {
            match c {
                '<' => within = true,
                '>' if within => {
                    within = false;
                    said.push(' ');
                }
                c if !within => said.push(if c.is_ascii_digit() { '0' } else { c }),
                _ => {}
            }
        }
        while said.contains("00") {
            said = said.replace("00", "0");
        }
        // Sizes that are told with more or fewer places.
        let words: Vec<String> = said
            .replace("0.0", "0")
            .replace(['─', '╮', '╯'], " ")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        lines.push(words.join(" "));
    }
    lines.retain(|line| !line.is_empty());
    lines
}

#[test]
fn a_screen_is_drawn_as_it_looks() {
    let svg =
        draw("plain \x1b[1m\x1b[32mbold <green>\x1b[0m \x1b[7mback\x1b[0m \x1b[38;5;32m▌\x1b[39m", "a & b");
    assert!(svg.contains("<title id=\"t\">a &amp; b</title>"), "{svg}");
    assert!(
        svg.contains(r#"<tspan x="58.8" textLength="93.6" class="b c2">bold &lt;green&gt;</tspan>"#),
        "{svg}"
    );
    assert!(svg.contains("class=\"back\"") && svg.contains("style=\"fill:#0087d7\""), "{svg}");
    assert_eq!(shape(&svg), ["plain bold &lt;green&gt; back ▌"]);
    assert_eq!(shape("<text x=\"1\">12 of 1,234.50 KiB</text>"), ["0 of 0,0 KiB"]);
}
