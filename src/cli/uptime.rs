//! Since when a daemon has been running.

use std::time::{Duration, SystemTime};

use crate::control::protocol::Status as Daemon;
use crate::sys::object::Time;

pub(super) fn since(daemon: &Daemon) -> Time {
    let us = daemon.about.since_us;
    Time { sec: (us / 1_000_000) as i64, nsec: (us % 1_000_000) as u32 * 1000 }
}

pub(super) fn uptime(daemon: &Daemon) -> Duration {
    elapsed(daemon.about.since_us)
}

/// Returns how long ago a time was, in microseconds since 1970.
pub(super) fn elapsed(us: u64) -> Duration {
    let began = SystemTime::UNIX_EPOCH + Duration::from_micros(us);
    SystemTime::now().duration_since(began).unwrap_or_default()
}
