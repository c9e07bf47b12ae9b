//! The curves as a picture: a panel an operation, both axes logarithmic.

use std::fmt::Write;

use super::fit::{Panel, Series, amount};
use super::label_of;
use crate::picture::COLOURS;

const PANEL: (f64, f64) = (250.0, 190.0);
const COLUMNS: usize = 4;
const TOP: f64 = 50.0;
/// Room around the curves of a panel: left, right, top, bottom.
const ROOM: [f64; 4] = [58.0, 12.0, 28.0, 34.0];

/// Draws all panels.
pub fn draw(panels: &[Panel], peers: &[&str]) -> String {
    let (width, height) =
        (PANEL.0 * COLUMNS as f64, TOP + PANEL.1 * panels.len().div_ceil(COLUMNS) as f64 + 8.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut x = 16.0;
    for (index, peer) in peers.iter().enumerate() {
        let colour = colour(index);
        writeln!(
            out,
            "<circle cx=\"{x}\" cy=\"20\" r=\"4\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"24\" font-size=\"12\">{peer}</text>",
            x + 8.0
        )
        .unwrap();
        x += 34.0 + 7.0 * peer.len() as f64;
    }
    for (index, curves) in panels.iter().enumerate() {
        let at = (PANEL.0 * (index % COLUMNS) as f64, TOP + PANEL.1 * (index / COLUMNS) as f64);
        panel(&mut out, at, curves, peers);
    }
    out.push_str("</svg>\n");
    out
}

/// The kernel is black; the others have the colours that they have in the other picture.
fn colour(index: usize) -> &'static str {
    match index {
        0 => "#222222",
        other => COLOURS[(other - 1) % COLOURS.len()],
    }
}

/// From where to where an axis goes, in powers of ten.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let logs = values.filter(|value| *value > 0.0).map(f64::log10);
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    (low.floor(), high.ceil().max(low.floor() + 1.0))
}

fn panel(out: &mut String, (left, top): (f64, f64), panel: &Panel, peers: &[&str]) {
    let Panel { axis, operation, curves } = panel;
    let points = || curves.values().flat_map(Series::points);
    let (low_x, high_x) = decades(points().map(|p| p.size));
    let (low_y, high_y) = decades(points().flat_map(|p| [p.least, p.most]));
    let (wide, high) = (PANEL.0 - ROOM[0] - ROOM[1], PANEL.1 - ROOM[2] - ROOM[3]);
    let x = |size: f64| left + ROOM[0] + wide * (size.log10() - low_x) / (high_x - low_x);
    let y = |time: f64| top + ROOM[2] + high * (high_y - time.log10()) / (high_y - low_y);
    writeln!(
        out,
        "<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"12\">{operation}</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
        left + ROOM[0],
        top + ROOM[2] - 9.0,
        left + ROOM[0] + wide / 2.0,
        top + PANEL.1 - 6.0,
        label_of(axis)
    )
    .unwrap();
    for decade in low_x as i32..=high_x as i32 {
        let at = x(10f64.powi(decade));
        line(out, (at, top + ROOM[2]), (at, top + ROOM[2] + high));
        text(out, (at, top + ROOM[2] + high + 12.0), "middle", &power(decade));
    }
    for decade in low_y as i32..=high_y as i32 {
        let value = 10f64.powi(decade);
        line(out, (left + ROOM[0], y(value)), (left + ROOM[0] + wide, y(value)));
        let label = if *operation == "memory" { amount(operation, value) } else { time(decade) };
        text(out, (left + ROOM[0] - 5.0, y(value) + 3.0), "end", &label);
    }
    // The kernel's, the first, is drawn last, on top.
    for (index, peer) in peers.iter().enumerate().rev() {
        let Some(curve) = curves.get(*peer) else { continue };
        let (colour, points) = (colour(index), curve.points());
        let path: Vec<String> = points.iter().map(|p| format!("{:.1} {:.1}", x(p.size), y(p.time))).collect();
        writeln!(
            out,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            path.join("L")
        )
        .unwrap();
        for p in &points {
            writeln!(
                out,
                "<path d=\"M{0:.1} {1:.1}V{2:.1}\" stroke=\"{colour}\"/><circle cx=\"{0:.1}\" cy=\"{3:.1}\" r=\"2.5\" fill=\"{colour}\"><title>{peer}, {4}: {5}</title></circle>",
                x(p.size),
                y(p.least),
                y(p.most),
                y(p.time),
                p.size,
                amount(operation, p.time)
            )
            .unwrap();
        }
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    writeln!(out, "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#e4e4e4\"/>", from.0, from.1, to.0, to.1)
        .unwrap();
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#555555\">{text}</text>",
        at.0, at.1
    )
    .unwrap();
}

fn power(decade: i32) -> String {
    match decade {
        0..=3 => 10i32.pow(decade as u32).to_string(),
        _ => format!("10<tspan dy=\"-3\" font-size=\"7\">{decade}</tspan>"),
    }
}

fn time(decade: i32) -> String {
    match decade {
        ..-6 => format!("{} ns", 10i32.pow((decade + 9).max(0) as u32)),
        -6..-3 => format!("{} µs", 10i32.pow((decade + 6) as u32)),
        -3..0 => format!("{} ms", 10i32.pow((decade + 3) as u32)),
        _ => format!("{} s", 10i32.pow(decade as u32)),
    }
}
