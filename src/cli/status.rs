//! `unionmount status`: how mounts are doing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;

use super::page::Page;
use super::stacks;
use super::store::StoreArgs;
use super::uptime::{since, uptime};
use super::watch;
use super::{Failure, say};
use crate::control::client::{Client, ClientError, STATUS_PATIENCE};
use crate::control::mounts::{self, Mount};
use crate::control::protocol::{CopyingReport, Status as Daemon};
use crate::control::runtime_dir;
use crate::explain::paint::{Cell, Paint, align};
use crate::explain::shorten::cut;
use crate::union::change::sealing::background::LazyReport;
use crate::union::escaped_path::EscapedPath;
use crate::union::lookup::usage::{Budget, Usage, measure};

/// Show how a mount is doing, or all mounts: layers, sizes, copy-ups, requests
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(super) struct Status {
    /// Print a JSON object for each mount, on a line of its own
    #[arg(long)]
    json: bool,

    /// Watch it live: requests by the second, the hottest paths, what happens. Keys: q ends, p pauses, c clears
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,

    /// How long counting what is in the layers may take; 0 leaves it out
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    count: f64,

    #[command(flatten)]
    store: StoreArgs,

    /// The mount, or a path in it; without, all mounts that you may ask, and with --watch the only one
    #[arg(value_name = "MOUNT")]
    mount: Option<PathBuf>,
}

const AFTER: &str = "\
Example:
  unionmount status                         # all mounts
  unionmount status merged                  # one: its layers with sizes, what changed since it was mounted
  unionmount status --watch                 # the only mount, live
  unionmount status --json | jq '{mount_point, copy_ups: .counters.copy_ups}'

JSON, one object a mount: version, pid, mount_point, device, since_us, io, options[], belief, layers[] {layer, name, directory},
counters {copy_ups, copied_bytes, whiteouts, creates, renames, attribute_changes, xattr_changes, index_answers},
requests {KIND: number}, requests_total, memory, nodes, listeners, lazy {half_copied, own_blocks, all_blocks, bytes_saved, sealed,
waiting, sealing} or null, copying[] {path, bytes, layer, micros} (large files that are being copied up), unmounted (the mount has ended, and its daemon goes
on sealing), uptime, and usage[], one for each layer: files,
directories, whiteouts, bytes, disk_bytes, changed_files, changed_bytes (since the mount), complete; or null.
Of a mount that didn't answer: mount_point, device, error, dead (its daemon has ended).

Files and sizes are counted by this command, not by the daemon; where the time was too short they are marked with a +
(`complete` is false in JSON).

EXIT STATUS:
  0  every mount answered
  1  one did not; stderr says why";

/// A mount, for JSON.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    daemon: Daemon,
    /// Seconds since it was mounted.
    uptime: f64,
    /// All requests.
    requests_total: u64,
    /// What is in the layers, in their order; null: can't be seen from here.
    usage: Option<Vec<Option<Usage>>>,
}

/// A mount whose daemon said nothing of use, for JSON.
#[derive(Serialize)]
struct Silent<'a> {
    mount_point: EscapedPath,
    device: &'a str,
    /// Its daemon has ended.
    dead: bool,
    error: String,
}

/// A mount, and what its daemon said.
struct Answer {
    mount: Mount,
    said: Result<Daemon, ClientError>,
}

impl Status {
    /// Runs the verb.
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if !(0.0..=1e6).contains(&self.count) {
            return Err(Failure::usage("--count: give seconds, 0 to 1000000"));
        }
        runtime_dir::sweep_own();
        match &self.mount {
            Some(path) => {
                let (mount, _) = mounts::of(path).map_err(Failure::failed)?;
                if self.watch {
                    return self.watch(&mount);
                }
                let mut daemon = ask(&mount).map_err(|error| Failure::failed(named(&mount, &error)))?;
                let names = stacks::names_of_mount(&mount, &daemon.layers, &self.store);
                stacks::call_layers(&mut daemon.layers, &names);
                self.print(&[Answer { mount, said: Ok(daemon) }])?;
                Ok(ExitCode::SUCCESS)
            }
            None if self.watch => {
                let mounts = own_mounts()?;
                match &mounts[..] {
                    [only] => self.watch(only),
                    [] => Err(Failure::failed("nothing is mounted by unionmount")),
                    several => {
                        let points =
                            several.iter().map(|mount| EscapedPath::from(mount.point.as_path()).to_string());
                        let points: Vec<String> = points.collect();
                        Err(Failure::usage(format!("name the mount to watch: {}", points.join(", "))))
                    }
                }
            }
            None => self.all(),
        }
    }

    fn watch(&self, mount: &Mount) -> Result<ExitCode, Failure> {
        let daemon = ask(mount).map_err(|error| Failure::failed(named(mount, &error)))?;
        let names = stacks::names_of_mount(mount, &daemon.layers, &self.store);
        watch::run(mount, &names)
    }

    fn all(&self) -> Result<ExitCode, Failure> {
        let mounts = own_mounts()?;
        let mut answers = side_by_side(mounts, |mount| {
            let said = ask(&mount);
            Some(Answer { mount, said })
        });
        if answers.iter().any(|answer| answer.said.is_err()) {
            let now = own_mounts()?;
            answers.retain(|answer| answer.said.is_ok() || is_mounted(&answer.mount, &now));
        }
        // Daemons whose mounts are in other mount namespaces, as those of a rootless engine's containers.
        let known: BTreeSet<String> =
            answers.iter().map(|answer| runtime_dir::socket_name(&answer.mount.device)).collect();
        let elsewhere = runtime_dir::own_sockets().into_iter().filter(|socket| !known.contains(&socket.name));
        answers.extend(side_by_side(elsewhere.collect(), |socket| {
            // It may have ended meanwhile.
            let daemon =
                Client::connect_to(&socket.path, STATUS_PATIENCE).and_then(|mut client| client.status());
            daemon.ok().map(|daemon| Answer { mount: Mount::elsewhere(&daemon.about), said: Ok(daemon) })
        }));
        if answers.is_empty() && !self.json {
            Page::of_line(format_args!("nothing is mounted by unionmount")).print()?;
        }
        self.print(&answers)?;
        let mut code = ExitCode::SUCCESS;
        for answer in &answers {
            if let Err(error) = &answer.said {
                say(&named(&answer.mount, error));
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    }

    fn print(&self, answers: &[Answer]) -> Result<(), Failure> {
        let mut page = Page::default();
        if self.json {
            for answer in answers {
                let line = match &answer.said {
                    Ok(daemon) => serde_json::to_string(&Report {
                        uptime: uptime(daemon).as_secs_f64(),
                        requests_total: daemon.requests.values().sum(),
                        usage: self.usage(&answer.mount, daemon),
                        daemon: daemon.clone(),
                    }),
                    Err(error) => serde_json::to_string(&Silent {
                        mount_point: EscapedPath::from(answer.mount.point.as_path()),
                        device: &answer.mount.device,
                        dead: matches!(error, ClientError::Dead(_)),
                        error: error.to_string(),
                    }),
                };
                page.json_text(&(line.map_err(Failure::failed)? + "\n"));
            }
        } else if let (Some(_), [Answer { mount, said: Ok(daemon) }]) = (&self.mount, answers) {
            page.drawn(&one(mount, daemon, self.usage(mount, daemon).as_deref(), Paint::of_stdout()));
        } else if !answers.is_empty() {
            page.drawn(&table(answers, Paint::of_stdout()));
        }
        page.print()
    }

    /// Counts what is in the layers. What another user's daemon calls its layers may lead anywhere, and hold up who looks.
    fn usage(&self, mount: &Mount, daemon: &Daemon) -> Option<Vec<Option<Usage>>> {
        if self.count == 0.0 || mount.is_of_another() {
            return None;
        }
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} counting {msg}") {
            progress.set_style(style);
        }
        let budget = Budget::of(Duration::from_secs_f64(self.count));
        let since = since(daemon);
        let counted = daemon.layers.iter().map(|layer| {
            let mut tell = |entries| {
                progress.set_message(format!("{}: {} entries", layer.name, HumanCount(entries)));
                progress.tick();
            };
            // A lower that the mount covers can't be seen from here.
            let covered =
                mounts::device_at(layer.directory.as_path()).is_ok_and(|at| at == daemon.about.device);
            if covered { None } else { measure(layer.directory.as_path(), Some(since), budget, &mut tell) }
        });
        let counted = counted.collect();
        progress.finish_and_clear();
        Some(counted)
    }
}

/// Returns the mounts that this user may ask, each once.
fn own_mounts() -> Result<Vec<Mount>, Failure> {
    let mounts = mounts::all().map_err(|e| Failure::failed(format!("/proc/self/mountinfo: {e}")))?;
    let us = rustix::process::geteuid().as_raw();
    let mut seen = BTreeSet::new();
    Ok(mounts
        .into_iter()
        // Bind mounts are the same filesystem in several places.
        .filter(|mount| seen.insert(mount.device.clone()))
        // What is another user's is asked by naming it, and then refused.
        .filter(|mount| us == 0 || mount.owner.is_none_or(|owner| owner == us))
        .collect())
}

/// Tells whether a mount is one of these. One that was asked while it was being unmounted had no answer, and isn't any more.
fn is_mounted(mount: &Mount, now: &[Mount]) -> bool {
    now.iter().any(|other| (&other.device, &other.point) == (&mount.device, &mount.point))
}

fn ask(mount: &Mount) -> Result<Daemon, ClientError> {
    Client::connect_within(mount, STATUS_PATIENCE).and_then(|mut client| client.status())
}

/// Returns an error's words, which name the mount.
fn named(mount: &Mount, error: &ClientError) -> String {
    let text = error.to_string();
    let point = EscapedPath::from(mount.point.as_path()).to_string();
    if text.contains(&point) { text } else { format!("{point}: {text}") }
}

/// How many daemons are asked at once. One that keeps silent holds nobody up but its own thread.
const AT_ONCE: usize = 256;

/// Does `work` for each, on threads of their own, and returns what came of them in their order.
fn side_by_side<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> Option<R> + Sync) -> Vec<R> {
    let threads = items.len().min(AT_ONCE);
    let items = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(Vec::new());
    let help = || {
        loop {
            let Some((at, item)) = items.lock().next() else { return };
            let result = work(item);
            done.lock().push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where no more threads can be had, those that there are do it all.
            if std::thread::Builder::new().spawn_scoped(scope, help).is_err() {
                break;
            }
        }
        help();
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().filter_map(|(_, result)| result).collect()
}

fn table(answers: &[Answer], paint: Paint) -> String {
    let head = ["MOUNT", "LAYERS", "UP", "COPY-UPS", "COPIED", "DELETED", "REQUESTS", "MEMORY", "PID"];
    let mut rows = vec![head.iter().map(|word| Cell::new(word, paint.dim(word))).collect::<Vec<_>>()];
    for Answer { mount, said } in answers {
        let point = EscapedPath::from(mount.point.as_path()).to_string();
        let daemon = match said {
            Ok(daemon) => daemon,
            Err(error) => {
                let state = match error {
                    ClientError::Dead(_) => "dead",
                    ClientError::Silent => "doesn't answer",
                    _ => "can't be asked",
                };
                rows.push(vec![Cell::new(&point, paint.bold(&point)), Cell::plain(state)]);
                continue;
            }
        };
        let writable = daemon.layers.first().is_some_and(|layer| layer.layer == 0);
        let layers = match writable {
            true => format!("{} + upper", daemon.layers.len() - 1),
            false => format!("{}, read-only", daemon.layers.len()),
        };
        // What it does is told by `lazy`.
        let layers =
            if daemon.unmounted { format!("{layers}; unmounted, {}", ending(daemon)) } else { layers };
        rows.push(vec![
            Cell::new(&point, paint.bold(&point)),
            Cell::plain(layers),
            Cell::plain(HumanDuration(uptime(daemon))),
            Cell::plain(HumanCount(daemon.counters.copy_ups)),
            Cell::plain(HumanBytes(daemon.counters.copied_bytes)),
            Cell::plain(HumanCount(daemon.counters.whiteouts)),
            Cell::plain(HumanCount(daemon.requests.values().sum())),
            Cell::plain(daemon.memory.map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default()),
            Cell::plain(daemon.about.pid),
        ]);
    }
    align(&rows, &[3, 4, 5, 6, 7, 8])
}

/// Says what a daemon does whose mount has ended.
fn ending(daemon: &Daemon) -> String {
    let sealing = daemon.lazy.as_ref().and_then(|lazy| lazy.sealing.as_ref());
    sealing.map_or_else(|| "ending".to_owned(), |path| format!("sealing {path}"))
}

/// Returns all about one mount.
fn one(mount: &Mount, daemon: &Daemon, usage: Option<&[Option<Usage>]>, paint: Paint) -> String {
    let about = &daemon.about;
    let mut out = format!(
        "{}  mounted {} ago, pid {}, unionmount {}, I/O {}\n\n",
        paint.bold(EscapedPath::from(mount.point.as_path())),
        HumanDuration(uptime(daemon)),
        about.pid,
        EscapedPath::from(about.version.as_bytes()),
        EscapedPath::from(about.io.as_bytes()),
    );
    out.push_str(&layer_table(daemon, usage, paint));
    out.push('\n');
    let counters = &daemon.counters;
    let grown = usage.and_then(|usage| usage.first().copied().flatten()).filter(|_| writable(daemon));
    let grown = grown.map(|usage| {
        let more = if usage.complete { "" } else { "at least " };
        format!(
            "{more}{} in {} of the upper, ",
            HumanBytes(usage.changed_bytes),
            count(usage.changed_files, "file")
        )
    });
    let facts = [
        (
            "changed",
            format!(
                "{}{} created, {} renamed, {}",
                grown.unwrap_or_default(),
                HumanCount(counters.creates),
                HumanCount(counters.renames),
                format_args!("{} made", count(counters.whiteouts, "whiteout")),
            ),
        ),
        (
            "copied up",
            format!("{}, {}", count(counters.copy_ups, "object"), HumanBytes(counters.copied_bytes)),
        ),
        ("requests", requests(daemon)),
        ("lookups", lookups(daemon)),
        (
            "memory",
            format!(
                "{}, {} known to the kernel",
                daemon.memory.map_or("unknown".into(), |bytes| HumanBytes(bytes).to_string()),
                count(daemon.nodes, "file")
            ),
        ),
    ];
    let lazy = daemon.lazy.as_ref().map(|lazy| ("lazy", left_below(lazy)));
    let copying = daemon.copying.iter().map(|copy| ("copying", copying_up(copy)));
    for (word, fact) in facts.into_iter().chain(lazy).chain(copying) {
        out.push_str(&format!("  {}  {fact}\n", paint.bold(format!("{word:<9}"))));
    }
    out
}

/// Says what is being copied up just now, and for how long.
pub(super) fn copying_up(copy: &CopyingReport) -> String {
    let from = copy.layer.map(|layer| format!(" from layer {layer}")).unwrap_or_default();
    let seconds = copy.micros as f64 / 1e6;
    format!("{} up: {}{from}, for {seconds:.1} s", copy.path, HumanBytes(copy.bytes))
}

/// Says what is left below of files that are copied up block by block.
fn left_below(lazy: &LazyReport) -> String {
    let mut said = format!("{} half-copied", count(lazy.half_copied, "file"));
    if lazy.half_copied > 0 {
        let (own, all) = (HumanCount(lazy.own_blocks), HumanCount(lazy.all_blocks));
        said.push_str(&format!(": {own} of {all} blocks, {} saved", HumanBytes(lazy.bytes_saved)));
    }
    said.push_str(&format!("; {} sealed", HumanCount(lazy.sealed)));
    match (&lazy.sealing, lazy.waiting) {
        (None, 0) => {}
        (None, waiting) => said.push_str(&format!(", {} waiting", HumanCount(waiting))),
        (Some(path), waiting) => said.push_str(&format!(", sealing {path}, {} waiting", HumanCount(waiting))),
    }
    said
}

fn writable(daemon: &Daemon) -> bool {
    daemon.layers.first().is_some_and(|layer| layer.layer == 0)
}

fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(number), if number == 1 { "" } else { "s" })
}

/// Returns the requests in words: `1,234 (4.1 a second): lookup 800, getattr 20`.
fn requests(daemon: &Daemon) -> String {
    let total: u64 = daemon.requests.values().sum();
    let mut kinds: Vec<(&String, &u64)> = daemon.requests.iter().filter(|(_, count)| **count > 0).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown: Vec<String> =
        kinds.iter().take(6).map(|(kind, n)| format!("{kind} {}", HumanCount(**n))).collect();
    let more = if kinds.len() > 6 { ", …" } else { "" };
    let rate = total as f64 / uptime(daemon).as_secs_f64().max(1.0);
    format!("{} ({rate:.1} a second): {}{more}", HumanCount(total), shown.join(", "))
}

fn lookups(daemon: &Daemon) -> String {
    let lookups = daemon.requests.get("lookup").copied().unwrap_or_default();
    let answered = daemon.counters.index_answers;
    format!("{}, {} answered by an index without asking a layer", HumanCount(lookups), HumanCount(answered))
}

/// Columns that a layer's name has in a table; steps of builds are long.
const LONGEST_NAME: usize = 40;

fn layer_table(daemon: &Daemon, usage: Option<&[Option<Usage>]>, paint: Paint) -> String {
    let head: &[&str] = match usage {
        Some(_) => &["  LAYER", "NAME", "FILES", "DIRECTORIES", "WHITEOUTS", "SIZE", "PATH"],
        None => &["  LAYER", "NAME", "PATH"],
    };
    let mut rows = vec![head.iter().map(|word| Cell::new(word, paint.dim(word))).collect::<Vec<_>>()];
    for (at, layer) in daemon.layers.iter().enumerate() {
        let number = if layer.layer == 0 { "  upper".to_owned() } else { format!("  {}", layer.layer) };
        let name = cut(&layer.name.to_string(), LONGEST_NAME);
        let path = layer.directory.to_string();
        let mut row = vec![Cell::new(&number, paint.bold(&number)), Cell::new(&name, paint.cyan(&name))];
        if let Some(usage) = usage {
            match usage.get(at).copied().flatten() {
                // Nobody counts what is in it for this.
                None if super::lowers::is_archive(std::path::Path::new(&path)) => {
                    row.extend(["", "", "", "an archive"].map(Cell::plain));
                }
                None => row.extend(["?", "?", "?", "not visible from here"].map(Cell::plain)),
                Some(usage) => {
                    let plus = if usage.complete { "" } else { "+" };
                    let number = |n: u64| Cell::plain(format!("{}{plus}", HumanCount(n)));
                    row.extend([usage.files, usage.directories, usage.whiteouts].map(number));
                    // Of sparse and half-copied files less is there than their sizes say.
                    let sparse = usage.disk_bytes < usage.bytes / 2;
                    let disk = if sparse {
                        format!(", {} on disk", HumanBytes(usage.disk_bytes))
                    } else {
                        String::new()
                    };
                    row.push(Cell::plain(format!("{}{plus}{disk}", HumanBytes(usage.bytes))));
                }
            }
        }
        row.push(Cell::new(&path, paint.dim(&path)));
        rows.push(row);
    }
    align(&rows, if usage.is_some() { &[2, 3, 4, 5] } else { &[] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: &str, point: &str) -> Mount {
        Mount {
            id: 0,
            point: point.into(),
            root: "/".into(),
            device: device.into(),
            source: String::new(),
            owner: None,
            options: String::new(),
        }
    }

    #[test]
    fn what_was_unmounted_meanwhile_is_no_mount_without_an_answer() {
        let asked = mount("0:50", "/mnt");
        assert!(is_mounted(&asked, &[mount("0:49", "/a"), mount("0:50", "/mnt")]));
        // Its number is another's by now, or its place is.
        assert!(!is_mounted(&asked, &[mount("0:50", "/a"), mount("0:49", "/mnt")]));
    }
}
