//! The results as a table and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::rows::{ROWS, Row};

/// All figures.
#[derive(Debug, Default)]
pub struct Results {
    /// Seconds by row, peer and round.
    times: BTreeMap<&'static str, BTreeMap<String, BTreeMap<usize, f64>>>,
    /// Requests of the daemon by peer and row.
    pub requests: BTreeMap<String, BTreeMap<&'static str, BTreeMap<String, u64>>>,
    /// Memory of the daemon after the walk, in KiB.
    pub memory: BTreeMap<String, Vec<u64>>,
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Results {
    pub fn add(&mut self, peer: &str, round: usize, times: BTreeMap<&'static str, f64>) {
        for (row, seconds) in times {
            self.times.entry(row).or_default().entry(peer.into()).or_default().insert(round, seconds);
        }
    }

    fn seconds(&self, row: &Row, peer: &str) -> Option<f64> {
        median(&mut self.times.get(row.key)?.get(peer)?.values().copied().collect::<Vec<_>>())
    }

    /// The median of the ratios to the kernel, round by round.
    fn ratio(&self, row: &Row, peer: &str) -> Option<f64> {
        let peers = self.times.get(row.key)?;
        let (own, kernel) = (peers.get(peer)?, peers.get("kernel")?);
        median(&mut own.iter().filter_map(|(round, s)| Some(s / kernel.get(round)?)).collect::<Vec<_>>())
    }

    /// The table, as Markdown.
    pub fn table(&self, peers: &[&str], name: &str) -> String {
        let mut out = String::new();
        let rootless = name == "rootless";
        let mut head = vec!["work".to_owned(), "kernel, seconds".to_owned()];
        head.extend(peers[1..].iter().map(|peer| (*peer).to_owned()));
        head.push("goal".to_owned());
        let ours: Vec<&str> =
            peers.iter().filter(|peer| self.requests.contains_key(**peer)).copied().collect();
        head.extend(ours.iter().map(|peer| format!("requests of {peer}")));
        writeln!(out, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len())).unwrap();
        for row in ROWS {
            let Some(kernel) = self.seconds(row, "kernel") else { continue };
            let mut cells = vec![row.label.to_owned(), format!("{kernel:.3}")];
            for peer in &peers[1..] {
                cells.push(self.ratio(row, peer).map_or("–".into(), shown));
            }
            cells.push(if rootless { row.rootless } else { row.limit }.to_string());
            cells.extend(ours.iter().map(|peer| self.requests_of(peer, row)));
            writeln!(out, "| {} |", cells.join(" | ")).unwrap();
        }
        let memory = |peer: &&str| {
            let mut all: Vec<f64> = self.memory.get(*peer)?.iter().map(|kib| *kib as f64).collect();
            Some(format!("{:.1} MB", median(&mut all)? / 1024.0))
        };
        if peers.iter().any(|peer| memory(peer).is_some()) {
            let mut cells = vec!["memory of the daemon after the walk".to_owned(), "–".to_owned()];
            cells.extend(peers[1..].iter().map(|peer| memory(peer).unwrap_or("–".into())));
            cells.push("8 MB".to_owned());
            cells.extend(ours.iter().map(|_| String::new()));
            writeln!(out, "| {} |", cells.join(" | ")).unwrap();
        }
        out
    }

    /// What the peer was asked.
    fn requests_of(&self, peer: &str, row: &Row) -> String {
        match self.requests.get(peer).and_then(|rows| rows.get(row.key)) {
            None => String::new(),
            Some(kinds) if kinds.is_empty() => "none".into(),
            Some(kinds) => {
                let words: Vec<_> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
                words.join(", ")
            }
        }
    }

    /// The ratios on a logarithmic scale, as SVG.
    pub fn picture(&self, peers: &[&str]) -> String {
        const COLOURS: [&str; 6] = ["#d1495b", "#7a5cc0", "#8d99ae", "#b08d57", "#5b8e7d", "#444444"];
        const LEFT: f64 = 330.0;
        const WIDTH: f64 = 560.0;
        const TOP: f64 = 56.0;
        const STEP: f64 = 22.0;
        let rows: Vec<&Row> = ROWS.iter().filter(|row| self.seconds(row, "kernel").is_some()).collect();
        let height = TOP + STEP * rows.len() as f64 + 34.0;
        let (low, high) = (0.01f64.ln(), 100f64.ln());
        let x = |ratio: f64| LEFT + WIDTH * (ratio.clamp(0.01, 100.0).ln() - low) / (high - low);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" viewBox=\"0 0 {0} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
            LEFT + WIDTH + 30.0
        );
        let bottom = TOP + STEP * rows.len() as f64;
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
        let mut at = LEFT;
        for (index, peer) in peers[1..].iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            writeln!(
                out,
                "<circle cx=\"{at:.1}\" cy=\"20\" r=\"5\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"24\" fill=\"#222222\">{peer}</text>",
                at + 10.0
            )
            .unwrap();
            at += 28.0 + 7.0 * peer.len() as f64;
        }
        writeln!(
            out,
            "<text x=\"10\" y=\"24\" fill=\"#222222\">time relative to the kernel's overlayfs</text>"
        )
        .unwrap();
        for (index, row) in rows.iter().enumerate() {
            let y = TOP + STEP * (index as f64 + 0.5);
            writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\
                 <line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#eeeeee\"/>",
                LEFT - 10.0,
                y + 4.0,
                row.label,
                LEFT + WIDTH
            )
            .unwrap();
            // The first is drawn last, on top.
            for (index, peer) in peers[1..].iter().enumerate().rev() {
                let Some(ratio) = self.ratio(row, peer) else { continue };
                let (colour, radius) = (COLOURS[index % COLOURS.len()], if index == 0 { 6 } else { 4 });
                writeln!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"><title>{peer}: {}</title></circle>",
                    x(ratio),
                    shown(ratio)
                )
                .unwrap();
            }
        }
        out.push_str("</svg>\n");
        out
    }
}

/// Two significant digits.
fn shown(ratio: f64) -> String {
    if ratio < 0.1 {
        format!("{ratio:.3}")
    } else if ratio < 9.95 {
        format!("{ratio:.2}")
    } else {
        format!("{ratio:.0}")
    }
}
