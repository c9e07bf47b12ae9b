//! HTTP as registries are spoken to: whose certificates count, proxies, how long to wait, when to try again.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::error::{RegistryError, Result};
use super::proxies::proxy;

/// How often anything is tried.
pub(super) const TRIES: u32 = 5;
/// Before the second try; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A registry that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(30);
/// Between two blocks of anything.
const SILENCE: Duration = Duration::from_secs(60);
/// Until an answer begins. A registry that has been sent a large blob checks it, and copies it to where it keeps such.
const ANSWER: Duration = Duration::from_secs(300);

/// Which certificates are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tls {
    /// Those of the system's and the user's authorities.
    Verified,
    /// Any.
    Unverified,
    /// None are asked for: plain HTTP.
    Plain,
}

/// Makes what speaks to one host. Redirects are its caller's to follow.
///
/// # Errors
/// When the user's certificates for it can't be read, or the proxy on the way is none.
pub(super) fn agent(host: &str, tls: Tls, cert_dir: Option<&Path>, is_registry: bool) -> Result<Agent> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(tls != Tls::Plain)
        .max_redirects(0)
        .proxy(proxy(tls != Tls::Plain, host)?)
        .user_agent(concat!("unionmount/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .tls_config(tls_config(host, tls, cert_dir, is_registry)?)
        .build();
    Ok(config.new_agent())
}

fn tls_config(host: &str, tls: Tls, cert_dir: Option<&Path>, is_registry: bool) -> Result<TlsConfig> {
    let mut builder = TlsConfig::builder();
    if tls == Tls::Plain {
        return Ok(builder.build());
    }
    let own = Own::read(host, cert_dir)?;
    // One that the user names is for the registry.
    if let Some(client) = own.client.filter(|_| is_registry || cert_dir.is_none()) {
        builder = builder.client_cert(Some(client));
    }
    if tls == Tls::Unverified {
        return Ok(builder.disable_verification(true).build());
    }
    let system = authorities_of_the_system();
    if system.is_empty() && own.authorities.is_empty() {
        // A machine without ca-certificates: Mozilla's list, as it was when this program was built.
        return Ok(builder.build());
    }
    Ok(builder.root_certs(RootCerts::from(system.iter().cloned().chain(own.authorities))).build())
}

/// Returns the certificates that the system believes, which are read once.
fn authorities_of_the_system() -> &'static [Certificate<'static>] {
    static KNOWN: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            log::debug!("a certificate of the system can't be read: {error}");
        }
        system.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()
    })
}

/// What the user has for one host: containers-certs.d(5), and the same of Docker.
#[derive(Default)]
struct Own {
    authorities: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

impl Own {
    fn read(host: &str, cert_dir: Option<&Path>) -> Result<Own> {
        let mut own = Own::default();
        if let Some(dir) = cert_dir {
            own.add(dir)?;
            return Ok(own);
        }
        let env = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = env("XDG_CONFIG_HOME").or_else(|| Some(env("HOME")?.join(".config")));
        let places = config.map(|dir| dir.join("containers/certs.d")).into_iter();
        for dir in places.chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()]) {
            own.add_if_allowed(&dir.join(host))?;
        }
        Ok(own)
    }

    /// Adds what is in one of the usual places. What only others may look into is theirs.
    fn add_if_allowed(&mut self, dir: &Path) -> Result<()> {
        match fs::read_dir(dir) {
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => {
                log::debug!("{}: is passed over: {denied}", dir.display());
                Ok(())
            }
            _ => self.add(dir),
        }
    }

    fn add(&mut self, dir: &Path) -> Result<()> {
        let error = |path: &Path, why: String| RegistryError::Settings(format!("{}: {why}", path.display()));
        let listed = match fs::read_dir(dir) {
            Err(gone) if matches!(gone.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            listed => listed.map_err(|io| error(dir, format!("cannot be listed: {io}")))?,
        };
        for entry in listed {
            let path = entry.map_err(|io| error(dir, format!("cannot be listed: {io}")))?.path();
            let read = |path: &Path| -> Result<Vec<PemItem<'static>>> {
                let text = fs::read(path).map_err(|io| error(path, format!("cannot be read: {io}")))?;
                let items: std::result::Result<Vec<_>, _> = parse_pem(&text).collect();
                items.map_err(|pem| error(path, format!("is no PEM file: {pem}")))
            };
            let certificates = |items: Vec<PemItem<'static>>| {
                items.into_iter().filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                })
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.authorities.extend(certificates(read(&path)?)),
                Some("cert") => {
                    let chain: Vec<Certificate<'static>> = certificates(read(&path)?).collect();
                    let key_path = path.with_extension("key");
                    let key: Option<PrivateKey<'static>> =
                        read(&key_path)?.into_iter().find_map(|item| match item {
                            PemItem::PrivateKey(key) => Some(key),
                            _ => None,
                        });
                    let key = key.ok_or_else(|| error(&key_path, "holds no private key".to_owned()))?;
                    self.client = Some(ClientCert::new_with_certs(&chain, key));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Says why nobody answered, and what may be done.
pub(super) fn why(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "there is no host of this name".to_owned(),
        ureq::Error::ConnectionFailed => "nobody answers there".to_owned(),
        ureq::Error::Timeout(_) => "it doesn't answer in time".to_owned(),
        // What rustls refuses comes as an error of reading.
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            format!("{error}; {CERTIFICATES}")
        }
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Rustls(error) => format!("{error}; {CERTIFICATES}"),
        ureq::Error::Tls(what) => format!("{what}; {CERTIFICATES}"),
        ureq::Error::RequireHttpsOnly(to) => {
            format!("it leads to {to}, which is not encrypted; --tls-verify=false allows it")
        }
        other => other.to_string(),
    }
}

const CERTIFICATES: &str =
    "put its authority's certificate into /etc/containers/certs.d/HOST/ca.crt, or say --tls-verify=false";

/// Tells whether the same may go well later.
pub(super) fn is_passing(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        // Rustls' complaints come as errors of reading as well.
        ureq::Error::Io(error) => {
            !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
        }
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Tells whether an answer says that the same may go well later.
pub(super) fn is_passing_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Tells how long to wait before a try; `None` when a registry asks for more patience than anybody has.
pub(super) fn pause(tried: u32, headers: Option<&HeaderMap>) -> Option<Duration> {
    let asked = headers.and_then(|headers| headers.get(header::RETRY_AFTER)).and_then(|value| {
        let text = value.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Duration::from_secs(seconds));
        }
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Some(Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default())
    });
    match asked {
        Some(asked) => (asked <= LONGEST_PAUSE).then_some(asked),
        None => Some(FIRST_PAUSE * 2u32.pow(tried.saturating_sub(1).min(6))),
    }
}

/// Reads a small answer.
///
/// # Errors
/// When it is larger, or breaks off.
pub(super) fn read_small(body: &mut ureq::Body, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.as_reader().take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::proxies::is_loopback;

    #[test]
    fn this_machine_is_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.io", "128.0.0.1:5000", "q.io", "[::2]:1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn pauses_grow_or_are_the_registrys() {
        let mut headers = HeaderMap::new();
        assert_eq!(pause(1, Some(&headers)), Some(FIRST_PAUSE));
        assert_eq!(pause(3, None), Some(FIRST_PAUSE * 4));
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(pause(1, Some(&headers)), Some(Duration::from_secs(7)));
        headers.insert(header::RETRY_AFTER, "86400".parse().unwrap());
        assert_eq!(pause(1, Some(&headers)), None);
        headers.insert(header::RETRY_AFTER, "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
        assert_eq!(pause(1, Some(&headers)), Some(Duration::ZERO));
    }
}
