//! Seccomp: which system calls a container may make.
//!
//! Distributions ship Docker's profile, as containers-common's `seccomp.json`. It is more than an OCI runtime takes: rules
//! hold for some machines, capabilities or kernels only. What holds here is picked out. Where there is none, a built-in
//! one is taken.

mod builtin;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::image;
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};
use serde::Deserialize;

use super::error::{ContainerError, Result};

/// Where a profile is looked for, the administrator's first.
const PLACES: [&str; 2] = ["/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json"];

/// A profile, as Docker and podman read it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

/// What else programs may be built for that run on a machine.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Vec<Arch>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(flatten)]
    calls: LinuxSyscall,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

/// Where a rule holds, or does not.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<Capability>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Where a container is to run.
#[derive(Debug, Clone)]
struct Here<'a> {
    capabilities: &'a HashSet<Capability>,
    /// As the Go language calls it, and in the profile's own words.
    arch: (String, Arch),
    kernel: (u32, u32),
}

/// Returns the filter for a container with these capabilities; `chosen` is a file or `none`, else the machine's profile
/// is taken, or the built-in one.
///
/// # Errors
/// When there is a profile that can't be read, or none can be used here.
pub fn filter(chosen: Option<&Path>, capabilities: &HashSet<Capability>) -> Result<Option<LinuxSeccomp>> {
    let places = PLACES.map(PathBuf::from);
    filter_of(chosen, &places, capabilities)
}

fn filter_of(
    chosen: Option<&Path>,
    places: &[PathBuf],
    capabilities: &HashSet<Capability>,
) -> Result<Option<LinuxSeccomp>> {
    let path = match chosen {
        Some(path) if path == Path::new("none") => return Ok(None),
        Some(path) => Some(path),
        None => places.iter().map(PathBuf::as_path).find(|path| path.exists()),
    };
    let unfiltered =
        |what: &str| ContainerError::Refused(format!("{what}; --seccomp none runs the container unfiltered"));
    if !Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Err(unfiltered("this kernel cannot filter system calls"));
    }
    let native = native().ok_or_else(|| unfiltered("there is no filter of system calls for this machine"))?;
    let profile = match path {
        None => builtin::profile(),
        Some(path) => {
            let text = fs::read(path).map_err(ContainerError::io("read it", path))?;
            serde_json::from_slice(&text).map_err(|error| {
                let path = path.display();
                ContainerError::Refused(format!(
                    "{path}: is no seccomp profile: {error}; --seccomp none goes without"
                ))
            })?
        }
    };
    let here =
        Here { capabilities, arch: (image::Arch::default().to_string(), native), kernel: kernel_version() };
    Ok(Some(profile.pick(&here)))
}

/// Returns this machine, as profiles call it.
fn native() -> Option<Arch> {
    Some(match std::env::consts::ARCH {
        "x86_64" => Arch::ScmpArchX86_64,
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "x86" => Arch::ScmpArchX86,
        "riscv64" => Arch::ScmpArchRiscv64,
        "s390x" => Arch::ScmpArchS390x,
        "powerpc64" if cfg!(target_endian = "little") => Arch::ScmpArchPpc64le,
        _ => return None,
    })
}

/// Returns the first two numbers of the version of the kernel that runs.
pub(super) fn kernel_version() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy())
}

/// Returns the first two numbers of a kernel's version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

impl Profile {
    fn pick(self, here: &Here<'_>) -> LinuxSeccomp {
        let mut architectures = self.architectures;
        if let Some(map) = self.arch_map.into_iter().find(|map| map.architecture == here.arch.1) {
            architectures.push(map.architecture);
            architectures.extend(map.sub_architectures);
        }
        let rules =
            self.syscalls.into_iter().filter(|rule| rule.includes.all(here) && !rule.excludes.any(here));
        let calls = rules.map(|Rule { mut calls, .. }| {
            // An empty list is none to Docker, and a filter on nothing to some runtimes.
            if calls.args().as_ref().is_some_and(Vec::is_empty) {
                calls.set_args(None);
            }
            calls
        });
        let mut filter = LinuxSeccomp::default();
        filter
            .set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(Some(architectures).filter(|list| !list.is_empty()))
            .set_syscalls(Some(calls.collect()))
            .set_flags(None);
        filter
    }
}

impl Condition {
    fn all(&self, here: &Here<'_>) -> bool {
        self.caps.iter().all(|capability| here.capabilities.contains(capability))
            && (self.arches.is_empty() || self.arches.contains(&here.arch.0))
            && self.min_kernel.as_ref().is_none_or(|least| here.kernel >= version(least))
    }

    fn any(&self, here: &Here<'_>) -> bool {
        self.caps.iter().any(|capability| here.capabilities.contains(capability))
            || self.arches.contains(&here.arch.0)
            || self.min_kernel.as_ref().is_some_and(|least| here.kernel >= version(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_where_they_say() {
        let rule = |name: &str, includes: &str, excludes: &str| {
            format!(
                r#"{{"names":["{name}"],"action":"SCMP_ACT_ALLOW","args":[],"comment":"",
                     "includes":{includes},"excludes":{excludes}}}"#
            )
        };
        let rules = [
            rule("always", "{}", "{}"),
            rule("admin", r#"{"caps":["CAP_SYS_ADMIN"]}"#, "{}"),
            rule("kill", r#"{"caps":["CAP_KILL"]}"#, "{}"),
            rule("not-kill", "{}", r#"{"caps":["CAP_KILL"]}"#),
            rule("amd", r#"{"arches":["amd64"]}"#, "{}"),
            rule("arm", r#"{"arches":["arm64"]}"#, "{}"),
            rule("new", r#"{"minKernel":"4.8"}"#, "{}"),
            rule("newer", r#"{"minKernel":"5.11"}"#, "{}"),
        ];
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"defaultErrno":"ENOSYS",
                 "archMap":[{{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}},
                            {{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}}],
                 "syscalls":[{}]}}"#,
            rules.join(",")
        );
        let profile: Profile = serde_json::from_str(&text).unwrap();
        let here = Here {
            capabilities: &HashSet::from([Capability::Kill]),
            arch: ("amd64".into(), Arch::ScmpArchX86_64),
            kernel: version("5.10.0-9-amd64"),
        };
        let filter = profile.pick(&here);
        let calls = filter.syscalls().clone().unwrap();
        let names: Vec<&str> =
            calls.iter().flat_map(|call| call.names().iter().map(String::as_str)).collect();
        assert_eq!(names, ["always", "kill", "amd", "new"]);
        assert!(calls.iter().all(|call| call.args().is_none()));
        assert_eq!(filter.architectures().clone().unwrap(), [Arch::ScmpArchX86_64, Arch::ScmpArchX86]);
        assert_eq!(filter.default_errno_ret(), Some(38));
    }

    #[test]
    fn none_is_none_and_another_file_is_an_error() {
        let none = HashSet::new();
        assert_eq!(filter(Some(Path::new("none")), &none).unwrap(), None);
        filter(Some(Path::new("/dev/null")), &none).unwrap_err();
    }

    #[test]
    fn a_machine_without_a_profile_has_the_built_in_one() {
        let filter = filter_of(None, &["/no/such/file".into()], &HashSet::new()).unwrap().unwrap();
        assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActErrno);
        let calls = filter.syscalls().clone().unwrap();
        let refused = calls.iter().filter(|rule| rule.action() == LinuxSeccompAction::ScmpActErrno);
        assert!(refused.flat_map(LinuxSyscall::names).any(|name| name == "mount"));
    }
}
