//! How the cost of an operation grows: with the number of layers, with the entries of a directory, and so on.
//!
//! Each point is a fresh mount over layers of one size, and the time of one operation, of several repeated. The layers'
//! own filesystem is warm for every program alike, the mount is cold; names that are made or looked for in vain are new
//! each time. All mounts are volatile: what a disk takes for a flush says nothing of how a cost grows. Beside the time there is the processor time of the client and the daemon, which doesn't depend on what else
//! the machine does.

mod axes;
mod chart;
mod fit;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use crate::peer::{Mounted, Peer};

pub use axes::AXES;
use fit::Panel;

type Outcome = Result<(), String>;

/// What is varied.
pub struct Axis {
    pub key: &'static str,
    pub label: &'static str,
    sizes: &'static [u64],
    /// Makes the layers of one size in a directory.
    build: fn(&Path, u64),
    /// Names of the lowers in that directory, topmost first.
    lowers: fn(u64) -> Vec<String>,
    /// Whether the upper is a part of the layers, and kept.
    keeps_upper: bool,
    /// Whether mounting and unmounting are measured.
    mounts: bool,
    work: fn(&mut Turn<'_>) -> Outcome,
}

/// One program's turn at one size.
pub struct Turn<'a> {
    mount: &'a Mounted<'a>,
    /// Where the layers are.
    layers: &'a Path,
    size: u64,
    figures: BTreeMap<&'static str, Figure>,
}

/// What one operation takes, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub time: f64,
    pub processor: f64,
}

impl Turn<'_> {
    /// Measures `count` operations.
    fn measure(&mut self, operation: &'static str, count: u64, work: impl FnOnce() -> Outcome) -> Outcome {
        let (clock, processor) = (Instant::now(), processor_time(Some(self.mount)));
        work().map_err(|error| format!("{operation}: {error}"))?;
        let (time, used) = (clock.elapsed().as_secs_f64(), processor_time(Some(self.mount)) - processor);
        let figure = Figure { time: time / count as f64, processor: used / count as f64 };
        self.figures.insert(operation, figure);
        Ok(())
    }
}

/// Processor time of this process, of its children that have ended, and of the daemon, in seconds.
fn processor_time(mount: Option<&Mounted<'_>>) -> f64 {
    let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let own = own.tv_sec as f64 + own.tv_nsec as f64 / 1e9;
    own + children_time() + mount.map_or(0.0, Mounted::processor_time)
}

/// Processor time of the children that have ended.
fn children_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may hold anything: the fields from the third on.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks: f64 = fields[13..15].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// Measures the wanted axes, up to a size.
pub fn run(
    peers: &[Peer],
    scratch: &Path,
    wanted: &dyn Fn(&str) -> bool,
    most: u64,
    rounds: usize,
) -> Growth {
    let mut growth = Growth::default();
    for axis in AXES.iter().filter(|axis| wanted(axis.key)) {
        for &size in axis.sizes.iter().filter(|size| **size <= most) {
            eprint!("\r{}: {size}          ", axis.label);
            let layers = scratch.join(format!("{}-{size}", axis.key));
            std::fs::create_dir(&layers).unwrap();
            (axis.build)(&layers, size);
            // The first round warms up what lies below the mounts.
            for round in 0..=rounds {
                for turn in 0..peers.len() {
                    let peer = &peers[(turn + round) % peers.len()];
                    match measure(axis, peer, &layers, size) {
                        Ok(figures) if round > 0 => growth.add(axis, &peer.name, size, figures),
                        Ok(_) => {}
                        Err(error) if round == 0 => {
                            eprintln!("\nbench: {}: {} {size}: {error}", peer.name, axis.key);
                        }
                        Err(_) => {}
                    }
                }
            }
            crate::peer::remove(&layers);
        }
    }
    eprintln!();
    growth
}

/// Takes one turn.
fn measure(
    axis: &Axis,
    peer: &Peer,
    layers: &Path,
    size: u64,
) -> Result<BTreeMap<&'static str, Figure>, String> {
    let lowers = (axis.lowers)(size);
    let (clock, processor) = (Instant::now(), processor_time(None));
    if !axis.keeps_upper {
        Peer::empty(&layers.join("upper"))?;
    }
    // The kernel's overlayfs takes none that a volatile mount has used.
    Peer::empty(&layers.join("work"))?;
    let mount = peer.mount_over(layers, &lowers, ",volatile")?;
    std::fs::symlink_metadata(mount.path.join("there")).map_err(|e| e.to_string())?;
    let mounted =
        Figure { time: clock.elapsed().as_secs_f64(), processor: processor_time(Some(&mount)) - processor };
    let mut turn = Turn { mount: &mount, layers, size, figures: BTreeMap::new() };
    let worked = (axis.work)(&mut turn);
    let mut figures = turn.figures;
    if let Some(kib) = mount.memory() {
        let bytes = kib as f64 * 1024.0;
        figures.insert("memory", Figure { time: bytes, processor: bytes });
    }
    let (clock, processor) = (Instant::now(), processor_time(Some(&mount)));
    drop(mount);
    if axis.mounts {
        // The daemon's part can't be seen any more when it has ended.
        let unmounted = Figure {
            time: clock.elapsed().as_secs_f64(),
            processor: (processor_time(None) - processor).max(0.0),
        };
        figures.insert("mount", mounted);
        figures.insert("unmount", Figure { processor: unmounted.time, ..unmounted });
    }
    worked.map(|()| figures)
}

/// All figures.
#[derive(Default)]
pub struct Growth {
    panels: Vec<Panel>,
}

impl Growth {
    fn add(&mut self, axis: &Axis, peer: &str, size: u64, figures: BTreeMap<&'static str, Figure>) {
        for (operation, figure) in figures {
            let known = |panel: &Panel| (panel.axis, panel.operation) == (axis.key, operation);
            let at = self.panels.iter().position(known).unwrap_or_else(|| {
                self.panels.push(Panel { axis: axis.key, operation, curves: BTreeMap::new() });
                self.panels.len() - 1
            });
            self.panels[at].curves.entry(peer.to_owned()).or_default().add(size, figure);
        }
    }

    /// Returns the slopes as Markdown.
    pub fn table(&self, peers: &[&str]) -> String {
        fit::table(&self.panels, peers)
    }

    /// Returns the curves as SVG.
    pub fn picture(&self, peers: &[&str]) -> String {
        chart::draw(&self.panels, peers)
    }
}

/// Returns what an axis is called.
fn label_of(axis: &str) -> &'static str {
    AXES.iter().find(|known| known.key == axis).map_or("", |axis| axis.label)
}
