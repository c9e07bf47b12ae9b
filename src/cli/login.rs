//! `unionmount login` and `logout`: the user's name and password at a registry.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use super::Failure;
use super::page::Page;
use super::registry::AccessArgs;
use crate::registry::credentials::{self, Credentials};
use crate::registry::{Client, Settings};

const HUB: &str = "docker.io";
/// More is no password.
const LONGEST: u64 = 1 << 16;

/// Keep a name and a password for a registry
///
/// They are tried first, and kept where podman and Docker find them too: in a credential helper where one is configured,
/// else in the file that --authfile tells.
#[derive(Debug, clap::Args)]
pub(super) struct Login {
    #[command(flatten)]
    access: AccessArgs,

    /// Your name there
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,

    /// Your password; who lists the processes of this machine sees it
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,

    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,

    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

impl Login {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let host = host(self.registry.as_deref())?;
        let user = match self.username {
            Some(user) => user,
            None => ask_name()?,
        };
        if user.contains(':') || user.is_empty() {
            return Err(Failure::usage("a name at a registry is not empty, and has no colon"));
        }
        let password = match self.password {
            Some(password) => password,
            None if self.password_stdin => {
                let mut text = String::new();
                let read = std::io::stdin().lock().take(LONGEST).read_to_string(&mut text);
                read.map_err(|error| Failure::failed(format!("stdin: cannot be read: {error}")))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None if std::io::stdin().is_terminal() => rpassword::prompt_password("Password: ")
                .map_err(|error| Failure::failed(format!("the terminal cannot be read: {error}")))?,
            None => return Err(Failure::usage("no terminal to ask for the password: give --password-stdin")),
        };
        let access = self.access.access();
        let endpoint = Settings::read()?.to_log_in(&host)?;
        let mine = Credentials::Password { user: user.clone(), password: password.clone() };
        Client::with(endpoint, &access, Some(mine)).check()?;
        let file = credentials::keep(access.authfile.as_deref(), &host, &user, &password)?;
        let mut page = Page::default();
        page.line(format_args!("Logged in to {host} as {user}; kept by {}", file.display()));
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Forget the name and the password for a registry
#[derive(Debug, clap::Args)]
pub(super) struct Logout {
    /// The file with your credentials [default: all that podman and Docker know]
    #[arg(long, value_name = "FILE")]
    authfile: Option<std::path::PathBuf>,

    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

impl Logout {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        super::logging::start_for_verb();
        let host = host(self.registry.as_deref())?;
        if !credentials::forget(self.authfile.as_deref(), &host)? {
            return Err(Failure::failed(format!("{host}: you are not logged in there")));
        }
        let mut page = Page::default();
        page.line(format_args!("Logged out of {host}"));
        page.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the host of a registry; an address of the web is taken for what it means.
fn host(registry: Option<&str>) -> Result<String, Failure> {
    let text = registry.unwrap_or(HUB);
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = bare.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { HUB } else { host };
    match host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => Err(Failure::usage(format!("{text:?} names no registry; an example is quay.io"))),
        false => Ok(host.to_owned()),
    }
}

fn ask_name() -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("no terminal to ask for the name: give -u NAME"));
    }
    let failed = |error: std::io::Error| Failure::failed(format!("the terminal cannot be read: {error}"));
    // Beside what the verb prints, as the password is asked for.
    anstream::stderr().write_all(b"Username: ").map_err(failed)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().to_owned())
}
