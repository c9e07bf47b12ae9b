//! `unionmount status`: how mounts are doing.

pub(super) mod told;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;

use super::language::Language;
use super::page::Page;
use super::stacks;
use super::store::StoreArgs;
use super::uptime::{since, uptime};
use super::watch;
use super::{Failure, say};
use crate::control::client::{Client, ClientError, STATUS_PATIENCE};
use crate::control::mounts::{self, Mount};
use crate::control::protocol::Status as Daemon;
use crate::control::runtime_dir;
use crate::explain::paint::Paint;
use crate::texts::Texts;
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
    language: Language,

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

JSON, one object a mount: version, pid, mount_point, device, since_us, io, options[], upgraded_us (when `unionmount upgrade` gave it
another daemon; absent else), belief, layers[] {layer, name, directory},
counters {copy_ups, copied_bytes, whiteouts, creates, renames, attribute_changes, xattr_changes, index_answers},
requests {KIND: number}, requests_total, memory, nodes, listeners, lazy {half_copied, own_blocks, all_blocks, bytes_saved, sealed,
waiting, sealing} or null, copying[] {path, bytes, done, layer, micros} (large files that are being copied up), unmounted (the mount has ended, and its daemon goes
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
        // Programs read the same sentences wherever they are.
        let texts = if self.json { Texts::english() } else { self.language.texts()? };
        runtime_dir::sweep_own();
        match &self.mount {
            Some(path) => {
                let (mount, _) = mounts::of(path).map_err(Failure::failed)?;
                if self.watch {
                    return self.watch(&mount, texts);
                }
                let mut daemon = ask(&mount).map_err(|error| Failure::failed(named(&mount, &error)))?;
                let names = stacks::names_of_mount(texts, &mount, &daemon.layers, &self.store);
                stacks::call_layers(&mut daemon.layers, &names);
                self.print(&[Answer { mount, said: Ok(daemon) }], texts)?;
                Ok(ExitCode::SUCCESS)
            }
            None if self.watch => {
                let mounts = own_mounts()?;
                match &mounts[..] {
                    [only] => self.watch(only, texts),
                    [] => Err(Failure::failed(texts.say("status.none"))),
                    several => {
                        let points =
                            several.iter().map(|mount| EscapedPath::from(mount.point.as_path()).to_string());
                        let points: Vec<String> = points.collect();
                        Err(Failure::usage(format!("name the mount to watch: {}", points.join(", "))))
                    }
                }
            }
            None => self.all(texts),
        }
    }

    fn watch(&self, mount: &Mount, texts: &'static Texts) -> Result<ExitCode, Failure> {
        let daemon = ask(mount).map_err(|error| Failure::failed(named(mount, &error)))?;
        let names = stacks::names_of_mount(texts, mount, &daemon.layers, &self.store);
        watch::run(texts, mount, &names)
    }

    fn all(&self, texts: &'static Texts) -> Result<ExitCode, Failure> {
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
            Page::of_line(format_args!("{}", texts.say("status.none"))).print()?;
        }
        self.print(&answers, texts)?;
        let mut code = ExitCode::SUCCESS;
        for answer in &answers {
            if let Err(error) = &answer.said {
                say(&named(&answer.mount, error));
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    }

    fn print(&self, answers: &[Answer], texts: &'static Texts) -> Result<(), Failure> {
        let mut page = Page::default();
        if self.json {
            for answer in answers {
                let line = match &answer.said {
                    Ok(daemon) => serde_json::to_string(&Report {
                        uptime: uptime(daemon).as_secs_f64(),
                        requests_total: daemon.requests.values().sum(),
                        usage: self.usage(texts, &answer.mount, daemon),
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
            let usage = self.usage(texts, mount, daemon);
            page.drawn(&told::one(texts, mount, daemon, usage.as_deref(), Paint::of_stdout()));
        } else if !answers.is_empty() {
            page.drawn(&told::table(texts, answers, Paint::of_stdout()));
        }
        page.print()
    }

    /// Counts what is in the layers. What another user's daemon calls its layers may lead anywhere, and hold up who looks.
    fn usage(&self, texts: &Texts, mount: &Mount, daemon: &Daemon) -> Option<Vec<Option<Usage>>> {
        if self.count == 0.0 || mount.is_of_another() {
            return None;
        }
        let progress = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            progress.set_style(style);
        }
        let budget = Budget::of(Duration::from_secs_f64(self.count));
        let since = since(daemon);
        let counted = daemon.layers.iter().map(|layer| {
            let mut tell = |entries| {
                let (name, count) = (layer.name.to_string(), HumanCount(entries).to_string());
                progress.set_message(texts.fill("status.counting", &[("layer", &name), ("count", &count)]));
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
