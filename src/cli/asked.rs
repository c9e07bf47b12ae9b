//! What a mount needs to be asked by `explain`, `status` and `trace`.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use crate::explain::control::Control;
use crate::explain::mounts;
use crate::explain::protocol::About;
use crate::fuse::counters::RequestCounters;
use crate::fuse::policy::Policy;
use crate::union::Union;
use crate::union::text::Text;

/// A mount that is about to begin.
pub(super) struct Asked {
    union: Weak<Union>,
    io: String,
    options: Vec<Text>,
}

impl Asked {
    pub(super) fn new(union: &Arc<Union>, policy: &Policy, options: Vec<Text>) -> Asked {
        Asked { union: Arc::downgrade(union), io: in_kebab_case(&format!("{:?}", policy.io)), options }
    }

    /// Makes the control socket, now that the mount is there. A mount without one is as good otherwise.
    pub(super) fn start(self, point: &Path, counters: Arc<RequestCounters>) -> Option<Control> {
        let union = self.union.upgrade()?;
        // Not by the table of mounts, which has a line for each.
        let device = match mounts::device_at(point) {
            Ok(device) => device,
            Err(error) => {
                log::info!("no control socket: {}: {error}", point.display());
                return None;
            }
        };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            mount_point: Text::from(point),
            device,
            since_us: since.as_micros() as u64,
            io: self.io,
            options: self.options,
        };
        match Control::start(&union, about, Box::new(move || counters.all())) {
            Ok(control) => Some(control),
            Err(error) => {
                log::info!("no control socket: {error}");
                None
            }
        }
    }
}

/// `WriteThrough` as `write-through`.
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
