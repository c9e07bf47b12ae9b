//! `unionmount save`: images into an archive.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Failure;
use super::store::StoreArgs;
use crate::image::save::{Format, save, select};

/// Save images to an archive that podman, skopeo, umoci and docker read
#[derive(Debug, clap::Args)]
pub(super) struct Save {
    #[command(flatten)]
    store: StoreArgs,

    /// The form: an OCI layout, with blobs as they are, or what docker save wrote before version 25
    #[arg(long, value_enum, default_value = "oci")]
    format: FormatArg,

    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The images, by name or id
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FormatArg {
    #[value(alias = "oci-archive")]
    Oci,
    #[value(alias = "docker-archive")]
    Docker,
}

/// What is said where an archive would go to a terminal.
pub(super) const NOT_ON_A_TERMINAL: &str = "an archive is nothing for a terminal: give -o FILE, or redirect";

impl Save {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let format = match self.format {
            FormatArg::Oci => Format::Oci,
            FormatArg::Docker => Format::Docker,
        };
        let store = self.store.with_something()?;
        let images = select(&store, &self.images)?;
        match self.output.filter(|path| path.as_os_str() != "-") {
            Some(path) => to_file(&path, |out| Ok(save(&store, &images, format, out)?))?,
            None if super::page::is_terminal() => {
                return Err(Failure::usage(NOT_ON_A_TERMINAL));
            }
            None => save(&store, &images, format, BufWriter::new(super::page::own_stdout().lock()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a file that is there when it is complete, and is on the disk when this returns. What is no regular file (a pipe, a device) is written as it is.
pub(super) fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("{}: cannot be written: {error}", path.display()));
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut out = BufWriter::new(File::options().write(true).open(path).map_err(failed)?);
        write(&mut out)?;
        return out.flush().map_err(failed);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    write(&mut out)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    // As any program makes files; images are no secrets, and the umask is the user's.
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    let mode = 0o666 & !mask.bits();
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}
