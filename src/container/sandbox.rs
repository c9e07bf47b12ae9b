//! What keeps a container from the machine: capabilities, device rules, namespaces, limits, what is masked.
//!
//! The default is that of podman: eleven capabilities, no device but the usual nodes, whatever nodes the image ships or a
//! program makes. The rules for devices are the cgroup's, a filter that the runtime installs; where it can't, there is no
//! container, unless it is privileged.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp,
    get_default_maskedpaths, get_default_readonly_paths,
};

use super::error::{ContainerError, Result};
use super::settings::{Cap, Net, Settings};

/// What root of a container may, as in podman: no device nodes, no raw sockets, no audit records.
const CAPABILITIES: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// All capabilities, by their numbers in the kernel.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The character devices that every container has: null, zero, full, random, urandom, tty, console, ptmx, terminals.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// A period of the processor's scheduler, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Returns the capabilities that this process may hand on: a runtime refuses others.
fn own_capabilities() -> HashSet<Capability> {
    let bounding = |at: usize| {
        let set = rustix::thread::CapabilitySet::from_bits_retain(1 << at);
        rustix::thread::capability_is_in_bounding_set(set).unwrap_or(false)
    };
    ALL.iter().enumerate().filter(|(at, _)| bounding(*at)).map(|(_, capability)| *capability).collect()
}

/// Returns the capabilities of root in the container.
pub fn capabilities(settings: &Settings) -> HashSet<Capability> {
    if settings.privileged {
        return own_capabilities();
    }
    let dropped = |capability: &Capability| {
        settings.cap_drop.iter().any(|cap| match cap {
            Cap::All(_) => true,
            Cap::One(one) => one == capability,
        })
    };
    let mut granted: HashSet<Capability> = CAPABILITIES.into_iter().filter(|c| !dropped(c)).collect();
    for cap in &settings.cap_add {
        match cap {
            Cap::All(_) => {
                let not_named = |c: &Capability| !settings.cap_drop.contains(&Cap::One(*c));
                granted.extend(own_capabilities().into_iter().filter(not_named));
            }
            Cap::One(one) => {
                granted.insert(*one);
            }
        }
    }
    granted
}

/// Returns the sets of a process's start. Another user than root starts without, as in Docker.
///
/// # Errors
/// None in practice.
pub fn sets(
    granted: HashSet<Capability>,
    root: bool,
) -> std::result::Result<LinuxCapabilities, OciSpecError> {
    let own = if root { granted.clone() } else { HashSet::new() };
    LinuxCapabilitiesBuilder::default()
        .bounding(granted)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .effective(own.clone())
        .permitted(own)
        .build()
}

/// Where a container's network comes from.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// Which network it has.
    pub net: Net,
    /// The network namespace that was made for it.
    pub netns: Option<&'a Path>,
    /// As root of a user namespace.
    pub user_namespace: bool,
    /// A runtime that is told no device rules makes none.
    pub silence_allows: bool,
}

/// Returns the part of a runtime's config that only Linux has.
///
/// # Errors
/// None in practice.
pub fn linux(
    settings: &Settings,
    around: Around<'_>,
    filter: Option<LinuxSeccomp>,
) -> std::result::Result<Linux, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if has_cgroup_namespaces() {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let mut namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<std::result::Result<Vec<_>, _>>()?;
    if around.net != Net::Host {
        let mut namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        if let Some(path) = around.netns {
            namespace = namespace.path(path);
        }
        namespaces.push(namespace.build()?);
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(if settings.privileged { Vec::new() } else { get_default_maskedpaths() })
        .readonly_paths(if settings.privileged { Vec::new() } else { get_default_readonly_paths() })
        .build()?;
    linux.set_resources(resources(settings, around)?);
    linux.set_seccomp(filter);
    linux.set_uid_mappings(None).set_gid_mappings(None);
    if settings.privileged && !around.user_namespace {
        linux.set_devices(Some(host_devices(Path::new("/dev"))));
    }
    Ok(linux)
}

fn has_cgroup_namespaces() -> bool {
    Path::new("/proc/self/ns/cgroup").exists()
}

/// Returns whether a container's /sys/fs/cgroup can be its own cgroup and those below: of version 2, in a namespace.
pub(super) fn has_cgroups_of_their_own() -> bool {
    has_cgroup_namespaces() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Returns what the cgroup is told. Root of a user namespace may not tell it anything; there devices are kept away by
/// mounts that are `nodev`, since a user namespace has no others.
fn resources(
    settings: &Settings,
    around: Around<'_>,
) -> std::result::Result<Option<LinuxResources>, OciSpecError> {
    if around.user_namespace {
        return Ok(None);
    }
    let mut resources = LinuxResources::default();
    // Even a filter that lets all pass is one that may fail to be installed.
    let rules = !(settings.privileged && around.silence_allows);
    resources.set_devices(if rules { Some(device_rules(settings.privileged)?) } else { None });
    if let Some(bytes) = settings.memory {
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        resources.set_memory(Some(LinuxMemoryBuilder::default().limit(limit).build()?));
    }
    if let Some(nano) = settings.nano_cpus {
        let quota =
            i64::try_from(u128::from(nano) * u128::from(CPU_PERIOD) / 1_000_000_000).unwrap_or(i64::MAX);
        resources.set_cpu(Some(LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD).build()?));
    }
    Ok(Some(resources))
}

/// Makes rules that deny all, then allow what is usual; or that allow all.
fn device_rules(privileged: bool) -> std::result::Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let all = LinuxDeviceCgroupBuilder::default().allow(privileged).access("rwm").build()?;
    let mut rules = vec![all];
    if !privileged {
        for (major, minor) in DEVICES {
            let mut rule = LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(LinuxDeviceType::C)
                .major(major)
                .access("rwm");
            if let Some(minor) = minor {
                rule = rule.minor(minor);
            }
            rules.push(rule.build()?);
        }
    }
    Ok(rules)
}

/// Returns the device nodes of the host, for a container that is to have them. What the runtime makes itself is left
/// out.
fn host_devices(top: &Path) -> Vec<LinuxDevice> {
    const LEFT_OUT: [&str; 5] = ["pts", "shm", "mqueue", "console", "ptmx"];
    let mut devices = Vec::new();
    let mut todo: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            let kind = stat.file_type();
            if dir == top && LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let typ = match (kind.is_dir(), kind.is_block_device(), kind.is_char_device()) {
                (true, ..) => {
                    todo.push(entry.path());
                    continue;
                }
                (_, true, _) => LinuxDeviceType::B,
                (.., true) => LinuxDeviceType::C,
                _ => continue,
            };
            let number = stat.rdev();
            let device = LinuxDeviceBuilder::default()
                .path(entry.path())
                .typ(typ)
                .major(rustix::fs::major(number))
                .minor(rustix::fs::minor(number))
                .file_mode(stat.mode() & 0o7777)
                .uid(stat.uid())
                .gid(stat.gid())
                .build();
            devices.extend(device);
        }
    }
    devices
}

/// Checks that what was chosen can be enforced here.
///
/// # Errors
/// When there is no way to keep devices from the container, or to limit what it uses.
pub fn check(settings: &Settings, user_namespace: bool) -> Result<()> {
    if user_namespace {
        if settings.memory.is_some() || settings.nano_cpus.is_some() {
            return Err(ContainerError::Refused(
                "-m and --cpus need cgroups, which an ordinary user's container has not; leave them out, or run as root"
                    .to_owned(),
            ));
        }
        return Ok(());
    }
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if settings.privileged || devices_can_be_ruled(&cgroups, Path::new("/sys/fs/cgroup")) {
        return Ok(());
    }
    Err(ContainerError::Refused(
        "devices cannot be kept from the container: neither cgroups of version 2 nor the controller \"devices\" of \
         version 1 are mounted below /sys/fs/cgroup; mount one of them, or run with --privileged to give it all devices"
            .to_owned(),
    ))
}

/// Tells whether devices can be ruled: with version 2 the runtime installs a filter, and ends when it can't; with
/// version 1 it needs the controller.
fn devices_can_be_ruled(cgroups: &str, top: &Path) -> bool {
    let listed = cgroups.lines().any(|line| {
        line.split(':').nth(1).is_some_and(|controllers| controllers.split(',').any(|name| name == "devices"))
    });
    top.join("cgroup.controllers").exists()
        || (listed
            && ["devices", "devices,freezer"].iter().any(|name| top.join(name).join("cgroup.procs").exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_capabilities_are_podmans() {
        let default = capabilities(&Settings::default());
        for capability in [Capability::Mknod, Capability::NetRaw, Capability::AuditWrite] {
            assert!(!default.contains(&capability));
        }
        assert_eq!(default.len(), 11);
        let with = |add: &[&str], drop: &[&str]| {
            let parsed = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
            capabilities(&Settings { cap_add: parsed(add), cap_drop: parsed(drop), ..Settings::default() })
        };
        assert_eq!(with(&[], &["all"]), HashSet::new());
        assert_eq!(with(&["net_raw"], &["all"]), HashSet::from([Capability::NetRaw]));
        assert!(!with(&[], &["kill"]).contains(&Capability::Kill));
        assert!(!with(&["all"], &["sys_admin"]).contains(&Capability::SysAdmin));
    }

    #[test]
    fn all_devices_are_denied_first() {
        let rules = device_rules(false).unwrap();
        assert!(!rules[0].allow() && rules[0].typ().is_none() && rules[0].major().is_none());
        assert!(rules[1..].iter().all(|rule| rule.allow() && rule.typ() == Some(LinuxDeviceType::C)));
        let none = Settings::default();
        let around =
            |user_namespace| Around { net: Net::None, netns: None, user_namespace, silence_allows: true };
        assert!(resources(&none, around(true)).unwrap().is_none());
        assert!(resources(&none, around(false)).unwrap().unwrap().devices().is_some());
    }

    #[test]
    fn rules_need_cgroups_of_either_kind() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!devices_can_be_ruled("4:devices:/\n", dir.path()));
        fs::create_dir(dir.path().join("devices")).unwrap();
        fs::write(dir.path().join("devices/cgroup.procs"), "").unwrap();
        assert!(devices_can_be_ruled("4:devices:/\n", dir.path()));
        assert!(!devices_can_be_ruled("4:memory:/\n", dir.path()));
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        assert!(devices_can_be_ruled("0::/\n", dir.path()));
    }
}
