//! The results as a table.

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

    /// The ratios to the kernel, round by round, in ascending order.
    fn ratios(&self, row: &Row, peer: &str) -> Option<Vec<f64>> {
        let peers = self.times.get(row.key)?;
        let (own, kernel) = (peers.get(peer)?, peers.get("kernel")?);
        let mut ratios: Vec<f64> = own.iter().filter_map(|(round, s)| Some(s / kernel.get(round)?)).collect();
        ratios.sort_by(f64::total_cmp);
        Some(ratios).filter(|ratios| !ratios.is_empty())
    }

    /// The median of the ratios, and from where to where they go.
    fn cell(&self, row: &Row, peer: &str) -> String {
        let Some(ratios) = self.ratios(row, peer) else { return "–".into() };
        let (middle, least, most) = (ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
        match ratios.len() {
            1 => shown(middle),
            _ => format!("{} ({}–{})", shown(middle), shown(least), shown(most)),
        }
    }

    /// The best of this program's modes, and its ratio.
    fn best(&self, row: &Row, modes: &[&str]) -> String {
        let middle = |mode: &&str| self.ratios(row, mode).map(|ratios| ratios[ratios.len() / 2]);
        let best =
            modes.iter().filter_map(|mode| Some((*mode, middle(mode)?))).min_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or("–".into(), |(mode, ratio)| format!("{mode}: {}", shown(ratio)))
    }

    /// The table, as Markdown.
    pub fn table(&self, peers: &[&str], name: &str) -> String {
        let mut out = String::new();
        let rootless = name == "rootless";
        let mut head = vec!["work".to_owned(), "kernel, seconds".to_owned()];
        head.extend(peers[1..].iter().map(|peer| (*peer).to_owned()));
        let ours: Vec<&str> =
            peers.iter().filter(|peer| self.requests.contains_key(**peer)).copied().collect();
        head.extend(["best here".to_owned(), "goal".to_owned()]);
        head.extend(ours.iter().map(|peer| format!("requests of {peer}")));
        writeln!(out, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len())).unwrap();
        for row in ROWS {
            let Some(kernel) = self.seconds(row, "kernel") else { continue };
            let mut cells = vec![row.label.to_owned(), format!("{kernel:.3}")];
            for peer in &peers[1..] {
                cells.push(self.cell(row, peer));
            }
            cells.push(self.best(row, &ours));
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
            cells.extend([String::new(), "8 MB".to_owned()]);
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
