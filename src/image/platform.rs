//! For which machines an image is, and how well it runs on this one.
//!
//! Names are those of Go (`amd64`, `arm64`), as in OCI's image-spec, with the aliases that others write. The variants of
//! amd64 are the levels of the x86-64 psABI, those of arm the versions of its architecture.

use std::fmt;
use std::sync::OnceLock;

use oci_spec::image::Arch;
use serde_json::{Value, json};

/// Systems whose names stand alone.
const SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];

/// A platform, by its normal names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// Reads the fields of a descriptor's platform or of a config; `None` where they don't tell.
    pub fn read(fields: &Value) -> Option<Platform> {
        let text =
            |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        let (mut os, written, mut variant) = (text("os"), text("architecture"), text("variant"));
        if written.is_empty() || written == "unknown" {
            return None;
        }
        if os.is_empty() {
            "linux".clone_into(&mut os);
        }
        let (architecture, default) = match written.as_str() {
            "x86_64" | "x86-64" | "amd64" => ("amd64", "v1"),
            "aarch64" | "arm64" => ("arm64", "v8"),
            "i386" | "i486" | "i586" | "i686" | "x86" => ("386", ""),
            "armhf" => ("arm", "v7"),
            "armel" => ("arm", "v6"),
            "arm" => ("arm", "v7"),
            other => (other, ""),
        };
        if variant.is_empty() {
            default.clone_into(&mut variant);
        } else if variant.starts_with(|first: char| first.is_ascii_digit()) {
            variant.insert(0, 'v');
        }
        Some(Platform { os, architecture: architecture.to_owned(), variant })
    }

    /// Reads `OS/ARCH[/VARIANT]`, `ARCH` alone for Linux, or `OS` alone for this machine; `None` for what is neither.
    pub fn parse(text: &str) -> Option<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let fields = match parts[..] {
            [os] if SYSTEMS.contains(&os) => {
                json!({ "os": os, "architecture": Machine::here().architecture })
            }
            [architecture] => json!({ "architecture": architecture }),
            [os, architecture] => json!({ "os": os, "architecture": architecture }),
            [os, architecture, variant] => {
                json!({ "os": os, "architecture": architecture, "variant": variant })
            }
            _ => return None,
        };
        if parts.iter().any(|part| part.is_empty()) {
            return None;
        }
        Platform::read(&fields)
    }

    /// Returns how well its programs run where `wanted` is wanted: the less the better, and `None` for not at all. A version
    /// of an architecture runs what is for those before it.
    pub fn rank_for(&self, wanted: &Platform) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        match (self.version(), wanted.version()) {
            _ if self.variant == wanted.variant => Some(0),
            (Some(own), Some(wanted)) => wanted.checked_sub(own),
            // One of them doesn't tell.
            _ => (self.variant.is_empty() || wanted.variant.is_empty()).then_some(100),
        }
    }

    /// Returns the version of the architecture that its variant is.
    fn version(&self) -> Option<u32> {
        self.variant.strip_prefix('v').and_then(|text| text.parse().ok())
    }

    /// Returns how well its programs run here: the less the better, and `None` for not at all.
    pub fn rank(&self) -> Option<u32> {
        self.rank_on(Machine::here())
    }

    fn rank_on(&self, machine: &Machine) -> Option<u32> {
        if self.os != "linux" {
            return None;
        }
        let version = self.version();
        match (machine.architecture.as_str(), self.architecture.as_str()) {
            ("amd64", "amd64") | ("arm", "arm") => machine.level.checked_sub(version?),
            ("amd64", "386") => Some(100),
            ("arm64", "arm64") if self.variant == "v8" => Some(0),
            ("arm64", "arm") => Some(100 + 8u32.checked_sub(version?)?),
            ("arm64", _) => None,
            (here, there) => (here == there).then_some(0),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match (self.architecture.as_str(), self.variant.as_str()) {
            (_, "") | ("amd64", "v1") | ("arm64", "v8") => Ok(()),
            (_, variant) => write!(f, "/{variant}"),
        }
    }
}

/// What this machine can run.
#[derive(Debug)]
pub struct Machine {
    architecture: String,
    level: u32,
}

impl Machine {
    /// Returns this machine's.
    pub fn here() -> &'static Machine {
        static HERE: OnceLock<Machine> = OnceLock::new();
        HERE.get_or_init(|| Machine { architecture: Arch::default().to_string(), level: level() })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

/// Returns which level of the x86-64 psABI the processor has.
#[cfg(target_arch = "x86_64")]
fn level() -> u32 {
    use std::arch::is_x86_feature_detected as has;
    let second = has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("sse4.2") && has!("ssse3");
    let third = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("lzcnt");
    let fourth =
        has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (second, third, fourth) {
        (true, true, true) => 4,
        (true, true, false) => 3,
        (true, false, _) => 2,
        (false, ..) => 1,
    }
}

/// Returns which version of its architecture the processor has, as the kernel names it: `armv7l`.
#[cfg(not(target_arch = "x86_64"))]
fn level() -> u32 {
    let name = rustix::system::uname();
    let name = name.machine().to_string_lossy();
    name.strip_prefix("armv").and_then(|rest| rest.chars().next()?.to_digit(10)).unwrap_or(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(architecture: &str, variant: &str) -> Platform {
        Platform::read(&json!({ "os": "linux", "architecture": architecture, "variant": variant })).unwrap()
    }

    #[test]
    fn what_runs_best_comes_first() {
        let order = |architecture: &str, level: u32, listed: &[(&str, &str)]| {
            let machine = Machine { architecture: architecture.to_owned(), level };
            let mut ranked: Vec<(u32, String)> = listed
                .iter()
                .map(|(architecture, variant)| platform(architecture, variant))
                .filter_map(|platform| Some((platform.rank_on(&machine)?, platform.to_string())))
                .collect();
            ranked.sort();
            ranked
                .into_iter()
                .map(|(_, name)| name.trim_start_matches("linux/").to_owned())
                .collect::<Vec<_>>()
        };
        let all = [
            ("amd64", "v4"),
            ("x86_64", ""),
            ("amd64", "v3"),
            ("amd64", "v2"),
            ("i386", ""),
            ("arm64", "v8"),
            ("arm", "v6"),
            ("arm", ""),
            ("arm", "8"),
            ("arm64", "v9"),
            ("s390x", ""),
        ];
        assert_eq!(order("amd64", 3, &all), ["amd64/v3", "amd64/v2", "amd64", "386"]);
        assert_eq!(order("amd64", 1, &all), ["amd64", "386"]);
        assert_eq!(order("arm64", 8, &all), ["arm64", "arm/v8", "arm/v7", "arm/v6"]);
        assert_eq!(order("arm", 6, &all), ["arm/v6"]);
        assert_eq!(order("s390x", 8, &all), ["s390x"]);
    }

    #[test]
    fn platforms_are_written_with_slashes() {
        let shown = |text: &str| Platform::parse(text).map(|platform| platform.to_string());
        assert_eq!(shown("linux/arm64").as_deref(), Some("linux/arm64"));
        assert_eq!(shown("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(shown("aarch64").as_deref(), Some("linux/arm64"));
        assert_eq!((shown(""), shown("linux/"), shown("a/b/c/d")), (None, None, None));
        assert_eq!(Platform::parse("linux").unwrap().rank_for(&Platform::parse("linux").unwrap()), Some(0));
        assert!(Platform::parse("linux").unwrap().rank().is_some());
    }

    #[test]
    fn a_version_runs_what_is_for_those_before_it() {
        let rank = |own: &str, wanted: &str| {
            Platform::parse(own).unwrap().rank_for(&Platform::parse(wanted).unwrap())
        };
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), Some(1));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v5"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), Some(2));
        assert_eq!(rank("linux/amd64/v2", "linux/amd64"), None);
        assert_eq!(rank("linux/s390x", "linux/s390x/z13"), Some(100));
        assert_eq!(rank("linux/riscv64/a", "linux/riscv64/b"), None);
        assert_eq!(rank("linux/arm64", "linux/arm"), None);
    }

    #[test]
    fn what_tells_nothing_is_no_platform() {
        for value in [json!(null), json!({}), json!({ "os": "unknown", "architecture": "unknown" })] {
            assert_eq!(Platform::read(&value), None);
        }
        let windows = Platform::read(&json!({ "os": "windows", "architecture": "amd64" })).unwrap();
        assert_eq!(windows.rank_on(&Machine { architecture: "amd64".into(), level: 4 }), None);
        assert!(Platform::read(&json!({ "architecture": Arch::default() })).unwrap().rank().is_some());
    }
}
