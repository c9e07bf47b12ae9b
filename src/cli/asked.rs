//! What a mount needs to be asked by `explain`, `status` and `trace`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::reopening::Reopening;
use super::upgrade::handing::Handing;
use crate::control::explanation::{Explanation, LayerReport};
use crate::control::mounts;
use crate::control::protocol::{About, Request, Restacked, Upgraded};
use crate::control::server::{Answers, Listening, Server, TakenOver};
use crate::error::Result;
use crate::explain::report;
use crate::fuse::counters::RequestCounters;
use crate::fuse::policy::Policy;
use crate::texts::Texts;
use crate::union::Union;
use crate::union::current::Current;
use crate::union::escaped_path::EscapedPath;

/// A mount that is about to begin.
pub(super) struct Asked {
    union: Arc<Current>,
    io: String,
    options: Vec<EscapedPath>,
}

impl Asked {
    pub(super) fn new(union: Arc<Current>, policy: &Policy, options: Vec<EscapedPath>) -> Asked {
        Asked { union, io: in_kebab_case(&format!("{:?}", policy.io)), options }
    }

    /// Makes the control socket, now that the mount is there. A mount without one is as good otherwise.
    pub(super) fn start(
        self,
        point: &Path,
        counters: Arc<RequestCounters>,
        (reopening, handing): (Reopening, Handing),
        before: Option<(TakenOver, Option<(u32, u32)>)>,
    ) -> Option<Server> {
        let belief = self.union.get().ok()?.belief();
        // Not by the table of mounts, which has a line for each.
        let known =
            before.as_ref().and_then(|(_, device)| device.map(|(major, minor)| format!("{major}:{minor}")));
        // What another process has mounted may have another path by now.
        let device = match known.map_or_else(|| mounts::device_at(point), Ok) {
            Ok(device) => device,
            Err(error) => {
                log::info!("no control socket: {}: {error}", point.display());
                return None;
            }
        };
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            mount_point: EscapedPath::from(point),
            device,
            since_us: handing.since_us,
            upgraded_us: before.is_some().then(now),
            io: self.io,
            options: self.options,
            belief: Some(belief),
        };
        let told = Box::new(Told { counters, reopening, handing });
        let served = match before {
            Some((socket, _)) => Server::go_on(self.union, about, told, socket),
            None => Server::start(self.union, about, told),
        };
        match served {
            Ok(server) => Some(server),
            Err(error) => {
                log::info!("no control socket: {error}");
                None
            }
        }
    }
}

/// What this program's daemons tell beside what the union knows.
struct Told {
    counters: Arc<RequestCounters>,
    reopening: Reopening,
    handing: Handing,
}

/// Returns the time in microseconds since 1970, UTC.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

impl Answers for Told {
    fn requests(&self) -> BTreeMap<String, u64> {
        self.counters.all()
    }

    fn layers(&self, union: &Union) -> Result<Vec<LayerReport>> {
        report::layers(union.inspector())
    }

    fn explain(&self, union: &Union, path: &[u8], language: Option<&str>) -> Result<Explanation> {
        report::explain_in(Texts::of_locale(language.unwrap_or_default()), union.inspector(), path)
    }

    fn snapshot(&self, name: Option<&str>) -> std::result::Result<String, String> {
        self.reopening.snapshot(name)
    }

    fn rollback(&self, name: Option<&str>) -> std::result::Result<String, String> {
        self.reopening.rollback(name)
    }

    fn branch(&self, new: &Path) -> std::result::Result<Option<String>, String> {
        self.reopening.branch(new)
    }

    fn restack(&self, request: Request) -> std::result::Result<Restacked, String> {
        self.reopening.restack(request)
    }

    fn upgrade(
        &self,
        program: &Path,
        id: (u64, u64),
        socket: Listening<'_>,
    ) -> std::result::Result<Upgraded, String> {
        self.handing.upgrade(program, id, socket, self.reopening.state())
    }

    /// Without unmounting, and without an end of what another process goes on with.
    fn end(&self) -> ! {
        std::process::exit(0)
    }
}

/// Returns `WriteThrough` as `write-through`.
fn in_kebab_case(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.extend(c.to_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_become_words() {
        assert_eq!(super::in_kebab_case("WriteThrough"), "write-through");
    }
}
