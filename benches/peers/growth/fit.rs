//! Exponents: the slope of a curve on paper with logarithmic axes.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Figure, label_of};

/// How much more than the kernel's an exponent may be.
const TOLERANCE: f64 = 0.1;

/// The figures of one program for one operation, by size.
#[derive(Default)]
pub struct Series(BTreeMap<u64, Vec<Figure>>);

/// The curves of one operation, by program.
pub struct Panel {
    pub axis: &'static str,
    pub operation: &'static str,
    pub curves: BTreeMap<String, Series>,
}

/// A point of a curve: the median, and the least and the most.
pub struct Point {
    pub size: f64,
    pub time: f64,
    pub least: f64,
    pub most: f64,
}

impl Series {
    pub fn add(&mut self, size: u64, figure: Figure) {
        self.0.entry(size).or_default().push(figure);
    }

    /// Returns the curve of the time.
    pub fn points(&self) -> Vec<Point> {
        self.points_of(|figure| figure.time)
    }

    fn points_of(&self, of: impl Fn(&Figure) -> f64) -> Vec<Point> {
        let point = |(size, figures): (&u64, &Vec<Figure>)| {
            let mut all: Vec<f64> = figures.iter().map(&of).collect();
            all.sort_by(f64::total_cmp);
            Point { size: *size as f64, time: all[all.len() / 2], least: all[0], most: all[all.len() - 1] }
        };
        self.0.iter().map(point).collect()
    }

    /// Returns the exponents of time and of processor time.
    fn exponents(&self) -> [Option<f64>; 2] {
        [slope(&self.points()), slope(&self.points_of(|figure| figure.processor))]
    }
}

/// Returns the slope of the upper half of a curve, at least three points, by least squares: what a small size costs is a
/// constant, which would hide how it grows.
fn slope(points: &[Point]) -> Option<f64> {
    let upper = &points[points.len().saturating_sub((points.len() / 2 + 1).max(3))..];
    let logs: Vec<(f64, f64)> =
        upper.iter().filter(|p| p.time > 0.0).map(|p| (p.size.ln(), p.time.ln())).collect();
    if logs.len() < 2 {
        return None;
    }
    let count = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
    let over: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let under: f64 = logs.iter().map(|p| (p.0 - x).powi(2)).sum();
    Some(over / under)
}

/// The table: for each operation the exponents of time and of processor time, and what it takes of both at the largest size.
pub fn table(panels: &[Panel], peers: &[&str]) -> String {
    let mut out = String::from(
        "Exponents of time / processor time over the larger half of the sizes; both at the largest size.\n\n| with | operation |",
    );
    peers.iter().for_each(|peer| write!(out, " {peer} |").unwrap());
    write!(out, " here steeper |\n|{}", "---|".repeat(peers.len() + 3)).unwrap();
    out.push('\n');
    for Panel { axis, operation, curves } in panels {
        write!(out, "| {} | {operation} |", label_of(axis)).unwrap();
        for peer in peers {
            let Some(curve) = curves.get(*peer) else {
                out.push_str(" – |");
                continue;
            };
            let [time, processor] = curve.exponents().map(|e| e.map_or("–".into(), |e| format!("{e:.2}")));
            let largest =
                |points: Vec<Point>| points.last().map_or(String::new(), |p| amount(operation, p.time));
            let [most, used] = [largest(curve.points()), largest(curve.points_of(|figure| figure.processor))];
            match *operation {
                "memory" => write!(out, " {time}; {most} |").unwrap(),
                _ => write!(out, " {time} / {processor}; {most} / {used} |").unwrap(),
            }
        }
        writeln!(out, " {} |", verdict(curves, peers)).unwrap();
    }
    out
}

/// Returns by how much the exponent of the second program is more than the first's, where it is too much in time and in
/// processor time.
fn verdict(curves: &BTreeMap<String, Series>, peers: &[&str]) -> String {
    let of = |at: usize| peers.get(at).and_then(|peer| curves.get(*peer)).map(Series::exponents);
    let (Some([Some(kernel_time), Some(kernel)]), Some([Some(time), Some(processor)])) = (of(0), of(1))
    else {
        return String::new();
    };
    let more = (time - kernel_time).min(processor - kernel);
    if more > TOLERANCE { format!("**{more:+.2}**") } else { String::new() }
}

/// Returns a time, or bytes of memory.
pub fn amount(operation: &str, value: f64) -> String {
    match (operation, value) {
        ("memory", bytes) => format!("{} MB", shown(bytes / 1e6)),
        (_, s) if s < 1e-3 => format!("{} µs", shown(s * 1e6)),
        (_, s) if s < 1.0 => format!("{} ms", shown(s * 1e3)),
        (_, s) => format!("{} s", shown(s)),
    }
}

/// Returns two significant digits, or all before the point.
fn shown(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}
