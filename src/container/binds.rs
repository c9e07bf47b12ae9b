//! What is mounted in a container: the kernel's filesystems, the files about its network, volumes, filesystems in memory.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Mount, MountBuilder};

use super::host_environment::{HostEnvironment, image_volumes};
use super::network::FILES;
use super::sandbox;
use super::seccomp::kernel_version;
use super::settings::{Net, Settings, Volume};
use super::targets::Target;

/// Where an init is put that was asked for: on what is the runtime's, so that the image needs no place for it.
pub const INIT: &str = "/dev/init";

/// Returns all places on which something of the user's or of ours is going to be mounted.
pub fn targets(image: &ImageConfiguration, settings: &Settings) -> Vec<Target> {
    let directory = |path: PathBuf| Target { path, file: false, optional: false };
    let given = |path: &str| settings.volumes.iter().any(|volume| volume.target == Path::new(path));
    let mut targets: Vec<Target> = FILES
        .into_iter()
        .filter(|path| !given(path))
        .map(|path| Target { path: path.into(), file: true, optional: true })
        .collect();
    targets.extend(settings.volumes.iter().map(|volume| Target {
        path: volume.target.clone(),
        file: !volume.source.is_dir(),
        optional: false,
    }));
    targets.extend(settings.tmpfs.iter().map(|tmpfs| directory(tmpfs.target.clone())));
    targets.extend(image_volumes(image, settings).into_iter().map(directory));
    targets
}

fn mount(target: &Path, kind: &str, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|&o| o.to_owned()).collect::<Vec<_>>())
        .build()
}

/// Returns all mounts, in the order in which they are made.
///
/// # Errors
/// None in practice.
pub(super) fn mounts(settings: &Settings, around: &HostEnvironment<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mut all = kernel(settings, around)?;
    let device = if settings.privileged { "dev" } else { "nodev" };
    let bind = |source: &Path, target: &Path, read_only: bool| {
        // With all that is mounted below the source, where the kernel can; below a file there is nothing, and crun 1.8 takes it
        // for a directory then.
        let access = match (read_only, kernel_version() >= (5, 12) && !source.is_file()) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        mount(target, "bind", source, &["rbind", access, device, "rprivate"])
    };
    for (source, target, read_only) in around.files {
        if !settings.volumes.iter().any(|volume| volume.target == Path::new(target))
            && let Some(place) = around.places.get(Path::new(target))
        {
            all.push(bind(source, place, *read_only)?);
        }
    }
    for (source, target) in around.volumes {
        all.push(bind(source, around.place(target), false)?);
    }
    for Volume { source, target, read_only } in &settings.volumes {
        all.push(bind(source, around.place(target), *read_only)?);
    }
    for tmpfs in &settings.tmpfs {
        let mut options = vec!["nosuid", "nodev", "noexec"];
        // What was asked for goes before what is usual.
        options.retain(|usual| !tmpfs.options.iter().any(|asked| asked == &usual[2..]));
        options.extend(tmpfs.options.iter().map(String::as_str));
        all.push(mount(around.place(&tmpfs.target), "tmpfs", Path::new("tmpfs"), &options)?);
    }
    if let Some(program) = around.init {
        all.push(bind(program, Path::new(INIT), true)?);
    }
    Ok(all)
}

/// Returns the kernel's filesystems.
fn kernel(settings: &Settings, around: &HostEnvironment<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        mount(Path::new(target), kind, Path::new(source), options)
    };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    // sysfs belongs to the network namespace: of the host's, a user namespace can only bind what is there. What is mounted
    // in it, cgroups above all, must be read-only as well.
    all.push(if around.user_namespace && around.net == Net::Host {
        mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro", "rprivate"])?
    } else if settings.privileged && !around.user_namespace {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev"])?
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?
    });
    // Of its own cgroup namespace: programs read their limits there, and see no cgroup but their own. Of version 1 they
    // would see the host's.
    if sandbox::has_cgroups_of_their_own() && !(around.user_namespace && around.net == Net::Host) {
        let access = if settings.privileged && !around.user_namespace { "rw" } else { "ro" };
        all.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?);
    }
    Ok(all)
}
