//! The table as a picture: a row a kind of work, a dot a program, on a logarithmic scale. It is drawn from the table's text,
//! so the two can't say different things.

use std::fmt::Write;

/// The programs' colours, in their order behind the kernel's.
pub const COLOURS: [&str; 6] = ["#d1495b", "#7a5cc0", "#8d99ae", "#b08d57", "#5b8e7d", "#444444"];

const WIDTH: f64 = 560.0;
const TOP: f64 = 56.0;
const STEP: f64 = 22.0;
/// What a letter takes at most, on average over a line.
const LETTER: f64 = 6.4;
/// From where to where the scale goes.
const SCALE: (f64, f64) = (0.01, 100.0);

/// A kind of work, and each program's ratio to the kernel's overlayfs where it has one, as it is written.
struct Line<'a> {
    label: &'a str,
    ratios: Vec<Option<&'a str>>,
}

fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// Returns the number that a cell begins with.
fn number(cell: &str) -> Option<f64> {
    cell.split(' ').next()?.parse().ok()
}

/// Reads the first table of a page: the programs, and a line for each row in which the kernel has a time.
fn read(page: &str) -> (Vec<String>, Vec<Line<'_>>) {
    let mut table =
        page.lines().skip_while(|line| !line.starts_with("| work |")).take_while(|l| l.starts_with('|'));
    let head = table.next().map(cells).unwrap_or_default();
    let programs = |name: &&&str| !["goal", "best here"].contains(*name) && !name.starts_with("requests");
    let names: Vec<&str> = head.iter().skip(2).take_while(programs).copied().collect();
    let lines =
        table.skip(1).map(cells).filter(|cells| cells.get(1).is_some_and(|cell| number(cell).is_some()));
    let lines = lines.map(|cells| Line {
        label: cells[0],
        ratios: (0..names.len())
            .map(|at| cells.get(at + 2).copied().filter(|cell| number(cell).is_some()))
            .collect(),
    });
    let lines = lines.collect();
    (names.iter().map(|name| name.replace('`', "")).collect(), lines)
}

/// Draws the first table of a page.
pub fn draw(page: &str) -> String {
    let (names, lines) = read(page);
    let longest = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0);
    let left = 20.0 + LETTER * longest as f64;
    let bottom = TOP + STEP * lines.len() as f64;
    let (width, height) = (left + WIDTH + 30.0, bottom + 34.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let (low, high) = (SCALE.0.ln(), SCALE.1.ln());
    let x = |ratio: f64| left + WIDTH * (ratio.clamp(SCALE.0, SCALE.1).ln() - low) / (high - low);
    scale(&mut out, x, bottom);
    legend(&mut out, &names);
    for (index, line) in lines.iter().enumerate() {
        let y = TOP + STEP * (index as f64 + 0.5);
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\
             <line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#eeeeee\"/>",
            left - 10.0,
            y + 4.0,
            line.label,
            left + WIDTH
        )
        .unwrap();
        // The first is drawn last, on top.
        for (index, cell) in line.ratios.iter().enumerate().rev() {
            let Some((cell, ratio)) = cell.and_then(|cell| Some((cell, number(cell)?))) else { continue };
            let (colour, radius) = (COLOURS[index % COLOURS.len()], if index == 0 { 6 } else { 4 });
            writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"><title>{}: {cell}</title></circle>",
                x(ratio),
                names[index]
            )
            .unwrap();
        }
    }
    out.push_str("</svg>\n");
    out
}

fn scale(out: &mut String, x: impl Fn(f64) -> f64, bottom: f64) {
    for ratio in [0.01, 0.1, 1.0, 10.0, 100.0] {
        let (at, colour) = (x(ratio), if ratio == 1.0 { "#222222" } else { "#dddddd" });
        writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">{ratio}×</text>",
            TOP - 6.0,
            bottom + 18.0
        )
        .unwrap();
    }
}

fn legend(out: &mut String, names: &[String]) {
    const HEADING: &str = "time relative to the kernel's overlayfs";
    writeln!(out, "<text x=\"10\" y=\"24\" fill=\"#222222\">{HEADING}</text>").unwrap();
    let mut at = 40.0 + LETTER * HEADING.len() as f64;
    for (index, name) in names.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        writeln!(
            out,
            "<circle cx=\"{at:.1}\" cy=\"20\" r=\"5\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"24\" fill=\"#222222\">{name}</text>",
            at + 10.0
        )
        .unwrap();
        at += 28.0 + LETTER * name.chars().count() as f64;
    }
}
