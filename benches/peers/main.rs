//! Measures unionmount beside the kernel's overlayfs and other unions, in pairs: each round mounts every peer in turn
//! over the same layers and does the same work, and a row's ratio is the median over the rounds of its time to the
//! kernel's time in the same round. `scripts/bench` builds what is needed and runs this.

#![allow(clippy::unwrap_used)] // a measurement that can't be made ends the program

mod growth;
mod layers;
mod peer;
mod picture;
mod report;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;

use peer::{Kind, Peer};
use report::Results;
use rows::{GROUPS, ROWS, Work};

#[derive(Debug, Parser)]
struct Args {
    /// Rows to measure, by key
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How many rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What to measure beside the kernel: KIND;PATH[;OPTIONS], KIND one of kernel, unionmount, fuse-overlayfs, unionfs
    #[arg(long = "peer", value_name = "NAME=KIND;PATH[;OPTIONS]")]
    peers: Vec<Peer>,
    /// Where the table and the picture go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// The name of the run: root or rootless
    #[arg(long, default_value = "root")]
    name: String,
    /// How costs grow, in place of the rows
    #[arg(long)]
    growth: bool,
    /// What grows, by key
    #[arg(long, value_delimiter = ',')]
    axes: Vec<String>,
    /// The largest size
    #[arg(long, default_value_t = 1_000_000)]
    most: u64,
    /// Draw the table of this page, and measure nothing
    #[arg(long, value_name = "PAGE")]
    draw: Option<PathBuf>,
    /// List the rows
    #[arg(long)]
    list: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    if args.list {
        for row in ROWS {
            println!("{:12} {}", row.key, row.label);
        }
        for axis in growth::AXES {
            println!("{:12} --growth, with the number of {}", axis.key, axis.label);
        }
        return;
    }
    if let Some(page) = args.draw {
        print!("{}", picture::draw(&std::fs::read_to_string(page).unwrap()));
        return;
    }
    let unknown_row = args.rows.iter().find(|key| ROWS.iter().all(|row| row.key != **key));
    let unknown_axis = args.axes.iter().find(|key| growth::AXES.iter().all(|axis| axis.key != **key));
    if let Some(unknown) = unknown_row.or(unknown_axis) {
        eprintln!("bench: nothing is called {unknown}; --list shows what is");
        std::process::exit(2);
    }
    let wanted = |key: &str| args.rows.is_empty() || args.rows.iter().any(|row| row == key);
    let mut peers = vec![Peer {
        name: "kernel".into(),
        kind: Kind::Kernel,
        program: PathBuf::new(),
        options: String::new(),
    }];
    peers.extend(args.peers.iter().cloned());

    let scratch = layers::Scratch::new();
    let names: Vec<&str> = peers.iter().map(|peer| &*peer.name).collect();
    if args.growth {
        let wanted = |key: &str| args.axes.is_empty() || args.axes.iter().any(|axis| axis == key);
        let growth = growth::run(&peers, scratch.path(), &wanted, args.most, args.rounds);
        return keep(&args.out, "growth", &growth.table(&names), &growth.picture(&names));
    }
    layers::build(scratch.path(), &|group| ROWS.iter().any(|row| row.group == group && wanted(row.key)));
    let mut results = Results::default();
    // The first round warms everything up and counts requests; it isn't timed.
    for round in 0..=args.rounds {
        for group in GROUPS {
            if !ROWS.iter().any(|row| row.group == *group && wanted(row.key)) {
                continue;
            }
            for turn in 0..peers.len() {
                let peer = &peers[(turn + round) % peers.len()];
                let mut work = Work::new(peer, scratch.path(), &wanted, round == 0);
                match work.run(*group) {
                    Ok(()) => {}
                    Err(error) => {
                        eprintln!("bench: {} cannot do {group:?}: {error}", peer.name);
                        continue;
                    }
                }
                let Work { times, requests, memory, .. } = work;
                if round == 0 && !requests.is_empty() {
                    results.requests.entry(peer.name.clone()).or_insert_with(BTreeMap::new).extend(requests);
                } else if round > 0 {
                    results.add(&peer.name, round, times);
                }
                if let Some(memory) = memory {
                    results.memory.entry(peer.name.clone()).or_default().push(memory);
                }
            }
        }
        if round > 0 {
            eprint!("\rround {round} of {}", args.rounds);
        }
    }
    eprintln!();
    let table = results.table(&names, &args.name);
    if args.rows.is_empty() {
        keep(&args.out, &args.name, &table, &picture::draw(&table));
    } else {
        print!("{table}");
    }
}

/// Prints a table, and keeps it with its picture.
fn keep(out: &Path, name: &str, table: &str, picture: &str) {
    print!("{table}");
    std::fs::create_dir_all(out).unwrap();
    std::fs::write(out.join(format!("{name}.md")), table).unwrap();
    std::fs::write(out.join(format!("{name}.svg")), picture).unwrap();
    eprintln!("in {}: {name}.md, {name}.svg", out.display());
}
